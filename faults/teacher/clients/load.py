"""python -m faults.teacher.clients.load HOW ADDRESS ...: clients in their own process.

polite ADDRESS CLIENTS ROUNDS        each client asks ROUNDS times, and waits when told to; prints
                                     {"answered": n, "refusals": [[seconds, push-back in ms], ...]}
steady ADDRESS RUN CLIENTS TOKENS    each client asks forever, 8 sequences of TOKENS tokens, as
                                     one run; ends when killed
scoring ADDRESS CLIENTS TOKENS       each client asks forever for hidden states
probe ADDRESS                        checks health until standard input ends, and retries at once
                                     on failure; prints {"checks": n, "failed": n, "max": seconds,
                                     "p99": seconds}: seconds until the answer SERVING
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from faults.teacher.clients.asking import OPTIONS, PATIENCE_SECONDS, request
from protos import teacher_pb2_grpc

_AIO: Any = grpc.aio  # the stubs lack EOF
_PROBE_EVERY_SECONDS = 0.02
_PROBE_GIVES_UP_SECONDS = 10.0


@contextlib.asynccontextmanager
async def aio_stub(address: str) -> AsyncIterator[Any]:
    """Yields a stub over its own connection."""
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        await channel.channel_ready()
        yield teacher_pb2_grpc.TeacherStub(channel)  # type: ignore[no-untyped-call]


async def read_to_end(call: Any) -> None:
    """Reads the rest of a reply. Raises grpc.aio.AioRpcError."""
    while await call.read() is not _AIO.EOF:
        pass


async def polite(address: str, clients: str, rounds: str) -> None:
    refusals: list[tuple[float, float]] = []
    answered = 0
    connected = asyncio.Barrier(int(clients))

    async def client(number: int) -> None:
        nonlocal answered
        run_id = f"run-{os.getpid()}-{number % 8}"
        draw = np.random.default_rng((os.getpid(), number))
        async with aio_stub(address) as stub:
            await connected.wait()
            await asyncio.sleep(draw.uniform(0, 0.1))
            for _ in range(int(rounds)):
                ids = draw.integers(0, 97, (2, 16))  # so that no two requests are equal
                message = request(list(ids), run_id=run_id)
                while (again := await _asked(stub, message, refusals)) is not None:
                    await asyncio.sleep(again)
                answered += 1

    await asyncio.gather(*(client(number) for number in range(int(clients))))
    print(json.dumps({"answered": answered, "refusals": refusals}))


async def _asked(
    stub: Any, message: Any, refusals: list[tuple[float, float]] | None = None
) -> float | None:
    """Returns None after an answer, else the seconds to wait before a retry."""
    begun = time.perf_counter()
    try:
        call = stub.LogitsForBatch(message, timeout=PATIENCE_SECONDS, wait_for_ready=True)
        await read_to_end(call)
        if await call.code() is grpc.StatusCode.OK:
            return None
        raise RuntimeError("a call ended without an answer")
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise
        metadata: Any = error.trailing_metadata() or ()  # pairs, contrary to the stubs
        trailing = dict(metadata)
        pushback_ms = float(trailing.get("grpc-retry-pushback-ms", -1))
        if refusals is not None:
            refusals.append((time.perf_counter() - begun, pushback_ms))
        return max(pushback_ms, 1.0) / 1000


async def steady(address: str, run_id: str, clients: str, tokens: str) -> None:
    await _for_ever(address, int(clients), run_id, "top_k", 50_000, int(tokens), sequences=8)


async def scoring(address: str, clients: str, tokens: str) -> None:
    await _for_ever(address, int(clients), None, "hidden", 1000, int(tokens), sequences=8)


async def _for_ever(
    address: str,
    clients: int,
    run_id: str | None,
    kind: str,
    vocab_size: int,
    tokens: int,
    *,
    sequences: int,
) -> None:
    async def client(number: int) -> None:
        draw = np.random.default_rng(number)
        async with aio_stub(address) as stub:
            while True:
                message = request(
                    list(draw.integers(0, vocab_size, (sequences, tokens))),
                    kind,
                    vocab_size=vocab_size,
                    top_k=1 if kind == "top_k" else None,
                    run_id=run_id or f"run-{number}",
                )
                while (await _asked(stub, message)) is not None:
                    await asyncio.sleep(0.05)

    await asyncio.gather(*(client(number) for number in range(clients)))


async def probe(address: str) -> None:
    loop = asyncio.get_running_loop()
    ended = loop.run_in_executor(None, sys.stdin.buffer.read)
    seconds: list[float] = []
    failed = 0
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        while not ended.done():
            begun = time.perf_counter()
            while not await _is_serving(health):
                failed += 1
                if time.perf_counter() - begun > _PROBE_GIVES_UP_SECONDS:
                    break
                await asyncio.sleep(0.01)
            seconds.append(time.perf_counter() - begun)
            await asyncio.sleep(_PROBE_EVERY_SECONDS)
    report = {
        "checks": len(seconds),
        "failed": failed,
        "max": max(seconds),
        "p99": float(np.quantile(seconds, 0.99)),
    }
    print(json.dumps(report))


async def _is_serving(health: Any) -> bool:
    try:
        reply = await health.Check(health_pb2.HealthCheckRequest(), timeout=_PROBE_GIVES_UP_SECONDS)
    except grpc.aio.AioRpcError:
        return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


_WAYS: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    "polite": polite,
    "steady": steady,
    "scoring": scoring,
    "probe": probe,
}

if __name__ == "__main__":
    asyncio.run(_WAYS[sys.argv[1]](*sys.argv[2:]))
