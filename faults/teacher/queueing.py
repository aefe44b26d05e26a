"""T5 to T8: a full queue, a run that floods it, clients that give up or are killed."""

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass
from itertools import count
from typing import Any

import grpc

from faults.processes import Peak, Server, Usage, start_module, wait_for
from faults.row import Tally
from faults.stage import Stage
from faults.teacher.clients.asking import PATIENCE_SECONDS, Refusal, request, score, stats
from faults.teacher.clients.load import aio_stub, read_to_end
from protos import teacher_pb2 as pb

_FIXTURE = ("--engine", "fixture", "--vocab-size")

T5_CLIENTS, T5_QUEUE = 64, 16
T5_REFUSED_SECONDS = 0.05
T5_MEMORY_BYTES = 64 << 20


def full_queue(stage: Stage) -> Tally:
    """T5: 64 clients against a queue of 16; each retries when told to."""
    tally = Tally()
    rounds = stage.tries(5, 2)
    queue = ("--max-queued-requests", str(T5_QUEUE))
    with stage.server(*_FIXTURE, "97", *queue, faults=("slow-fixture=0.0005",)) as server:
        score(server.address, request([[1]]))
        clients = [
            start_module(
                "faults.teacher.clients.load",
                "polite",
                server.address,
                str(T5_CLIENTS // 4),
                str(rounds),
            )
            for _ in range(4)
        ]
        deepest = 0
        with Peak(server.process.pid) as peak:
            while any(client.poll() is None for client in clients):
                counters = stats(server.address)
                deepest = max(deepest, counters.queued_requests + counters.running_requests)
                stage.say(f"{counters.refused_requests} refusals so far")
                time.sleep(0.02)
        reports = [json.loads(client.communicate()[0] or b"{}") for client in clients]
        tally.require(server.alive, "the server crashed")
    for report in reports:
        for _ in range(report.get("answered", 0)):
            tally.count(True, "")
    missing = T5_CLIENTS * rounds - tally.tries
    for _ in range(missing):
        tally.count(False, "a client did not finish")
    refusals = [refusal for report in reports for refusal in report.get("refusals", [])]
    longest = max((seconds for seconds, _ in refusals), default=0.0)
    pushed_back = all(pushback_ms > 0 for _, pushback_ms in refusals)
    tally.require(bool(refusals), "no request was refused")
    tally.require(pushed_back, "a refusal did not say when to retry")
    tally.require_within(longest, T5_REFUSED_SECONDS, "a refusal")
    tally.require(deepest <= T5_QUEUE, f"{deepest} requests were queued")
    tally.require(
        peak.grown_bytes <= T5_MEMORY_BYTES, f"memory grew by {peak.grown_bytes >> 20} MiB"
    )
    tally.figure = (
        f"{len(refusals)} refusals within {1000 * longest:.1f} ms; at most {deepest} queued; "
        f"all requests answered; +{peak.grown_bytes >> 20} MiB"
    )
    return tally


T6_SECONDS = 10.0
T6_SHARE = 0.9 * 0.5


def flooding_run(stage: Stage) -> Tally:
    """T6: one run keeps the queue as full as it may, another run keeps four requests queued."""
    tally = Tally()
    with stage.server(*_FIXTURE, "50000", faults=("slow-fixture=0.0001",)) as server:
        clients = [
            start_module(
                "faults.teacher.clients.load", "steady", server.address, run_id, number, tokens
            )
            for run_id, number, tokens in (("flood", "60", "64"), ("modest", "4", "16"))
        ]
        try:
            wait_for(lambda: len(_tokens_of_runs(server)) == 2)
            for turn in range(stage.tries(3, 1)):
                stage.say(f"window {turn + 1}")
                before = _tokens_of_runs(server)
                time.sleep(T6_SECONDS)
                after = _tokens_of_runs(server)
                served = {run_id: after[run_id] - before[run_id] for run_id in after}
                share = served["modest"] / sum(served.values())
                tally.count(share >= T6_SHARE, f"the modest run got {share:.0%} of the teacher")
                tally.figure += f"{', ' if turn else ''}{share / 0.5:.0%}"
        finally:
            for client in clients:
                client.kill()
                client.communicate()
    tally.figure = f"beside a flood, the other run keeps {tally.figure} of its fair half"
    return tally


def _tokens_of_runs(server: Server) -> dict[str, int]:
    return {run.run_id: run.tokens for run in stats(server.address).runs if run.tokens}


T7_FREE_SECONDS = 0.1
_T7_QUEUE = 16


def gone_from_the_queue(stage: Stage) -> Tally:
    """T7: a full queue whose clients cancel or time out before they are served."""
    tally = Tally()
    slowest: dict[str, float] = {"cancel": 0.0, "deadline": 0.0}
    queue = ("--max-queued-requests", str(_T7_QUEUE), "--cache-bytes", "0")
    with stage.server(*_FIXTURE, "97", *queue, faults=("slow-fixture=0.0005",)) as server:
        numbers = count()
        for turn in range(stage.tries(20, 4)):
            for way in slowest:
                stage.say(f"{way} {turn + 1}")
                freed, forwards = asyncio.run(_leave_the_queue(server.address, way, numbers))
                slowest[way] = max(slowest[way], freed)
                tally.count(
                    forwards == 1, f"{way}: {forwards - 1} forwards ran for clients that had gone"
                )
                tally.require_within(freed, T7_FREE_SECONDS, f"{way}: until a place was free")
    tally.figure = (
        f"a place is free at most {1000 * slowest['cancel']:.0f} ms after a cancel, "
        f"{1000 * slowest['deadline']:.0f} ms after a deadline; no forward runs for them"
    )
    return tally


async def _leave_the_queue(address: str, way: str, numbers: Any) -> tuple[float, int]:
    """Returns seconds until a place was free, and the forwards that ran meanwhile.

    One request computes for a second and fifteen wait behind it, each of another run.
    """
    expires = 0.4
    async with aio_stub(address) as stub:
        before = (await _stats(stub)).forwards
        long = request([[1] * 2000], last=True, run_id=f"long-{next(numbers)}")
        blocker = stub.LogitsForBatch(long, timeout=PATIENCE_SECONDS)
        await blocker.read()
        begun = time.perf_counter()
        waiting = [
            stub.LogitsForBatch(
                request([[2, 3]], last=True, run_id=f"short-{next(numbers)}"),
                timeout=expires if way == "deadline" else PATIENCE_SECONDS,
            )
            for _ in range(_T7_QUEUE - 1)
        ]
        await asyncio.gather(*(call.read() for call in waiting))
        if way == "deadline":
            await asyncio.sleep(max(0.0, begun + expires - time.perf_counter()))
            begun += expires
        else:
            begun = time.perf_counter()
            for call in waiting:
                call.cancel()
        freed = await _until_admitted(stub, numbers, begun)
        await read_to_end(blocker)
        while (counters := await _stats(stub)).queued_requests + counters.running_requests:
            await asyncio.sleep(0.01)
        return freed, counters.forwards - before


async def _until_admitted(stub: Any, numbers: Any, begun: float) -> float:
    while True:
        call = stub.LogitsForBatch(
            request([[4]], last=True, run_id=f"next-{next(numbers)}"), timeout=PATIENCE_SECONDS
        )
        with contextlib.suppress(grpc.RpcError):
            await call.read()
            freed = time.perf_counter() - begun
            call.cancel()
            return freed
        await asyncio.sleep(0.002)


async def _stats(stub: Any) -> pb.Stats:
    counters: pb.Stats = await stub.GetStats(pb.GetStatsRequest(protocol_version=1))
    return counters


T8_LEAK = 1.05


@dataclass
class _Holdings:
    """What an idle server holds."""

    usage: Usage
    places: int

    @classmethod
    def of(cls, server: Server) -> "_Holdings":
        """Returns the minimum over one second, in which ended calls are cleaned up."""

        def idle() -> bool:
            counters = stats(server.address)
            return counters.queued_requests + counters.running_requests == 0

        wait_for(idle, 10)
        counters = stats(server.address)
        samples = []
        for _ in range(10):
            time.sleep(0.1)
            samples.append(server.usage())
        least = Usage(
            *(min(getattr(one, name) for one in samples) for name in Usage.__dataclass_fields__)
        )
        return cls(least, counters.queued_requests + counters.running_requests)


def killed_while_reading(stage: Stage) -> Tally:
    """T8: processes are killed while they read a reply of 32 MiB."""
    tally = Tally()
    kills, warm_up = stage.tries(200, 20), 40
    message = request([[1, 2, 3, 4] * 32] * 16, vocab_size=4096)
    path = stage.folder / "request"
    with stage.server(*_FIXTURE, "4096", "--cache-bytes", "0") as server:
        before = None
        for number in range(warm_up + kills):
            if number == warm_up:
                before = _Holdings.of(server)
            stage.say(f"kill {number + 1} of {warm_up + kills}")
            message.run_id = f"killed-{number}"
            path.write_bytes(message.SerializeToString())
            reading = _killed_reader(server.address, str(path))
            if number >= warm_up:
                tally.count(reading and server.alive, "the reader was not in the middle of a reply")
            if not reading:
                break  # the next one would not be reading either
        if before is None:
            tally.count(False, f"the server accepted only {number} readers")
            return tally
        after = _Holdings.of(server)
        answered = score(server.address, request([[1, 2]], vocab_size=4096))
    growth = {
        "memory": after.usage.memory_bytes / before.usage.memory_bytes,
        "threads": after.usage.threads / before.usage.threads,
        "descriptors": after.usage.descriptors / before.usage.descriptors,
    }
    tally.require(after.places == 0, f"{after.places} places of the queue are still taken")
    tally.require(not isinstance(answered, Refusal), f"the next request was refused: {answered}")
    for name, factor in growth.items():
        tally.require(factor <= T8_LEAK, f"{name} grew by {factor - 1:.1%}")
    tally.figure = ", ".join(f"{name} {factor - 1:+.1%}" for name, factor in growth.items())
    tally.figure += f", {after.places} places taken"
    return tally


def _killed_reader(address: str, path: str) -> bool:
    """Kills a process that reads a reply; returns whether it had begun to read."""
    reader = start_module("faults.teacher.clients.attackers", "read", address, path)
    try:
        return bool(reader.stdout and reader.stdout.readline() == b"reading\n")
    finally:
        reader.kill()
        reader.communicate()
