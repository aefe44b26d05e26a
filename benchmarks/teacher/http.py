"""The HTTP face against gRPC: the same rows of the same sequences, answered from the cache.

What is measured is what a client waits for, until it has numbers: `top_k` as targets over gRPC, and
`prompt_logprobs` of /v1/completions as parsed JSON. Each side in turns; the server is one process
with one thread, and derives the rows anew each time.
"""

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.pairs import paired
from benchmarks.servers import connected, served, write_model
from benchmarks.teacher.serving import config
from lectern_common.logs import configure_logs
from lectern_common.wire.formats import Representation

VOCAB_SIZE, SEQUENCES, TOKENS, TEMPERATURE = 32_768, 4, 512, 2.0
TOP_K = (8, 64)


def measure(pairs: int = 5) -> Iterator[dict[str, Any]]:
    """Yields one row for each k."""
    torch.set_num_threads(1)
    configure_logs("warning")
    disable_progress_bar()
    ids = np.random.default_rng(0).integers(0, VOCAB_SIZE, (SEQUENCES, TOKENS)).astype(np.uint32)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = write_model(folder / "teacher", config(VOCAB_SIZE))
        at = f"127.0.0.1:{_free_port()}"
        with (
            served(model, folder, "--http", at) as server,
            connected(server.address, VOCAB_SIZE, folder) as teacher,
            httpx.Client(base_url=f"http://{at}", trust_env=False, timeout=300) as client,
        ):
            for k in TOP_K:
                yield _measure_one(teacher, client, ids, k, pairs)


def _measure_one(
    teacher: Any, client: httpx.Client, ids: Any, k: int, pairs: int
) -> dict[str, Any]:
    body = {
        "prompt": ids.tolist(),
        "max_tokens": 0,
        "temperature": TEMPERATURE,
        "prompt_logprobs": k,
    }
    # HTTP has nothing to say about the last token of a sequence.
    asked = [np.arange(TOKENS) < TOKENS - 1] * SEQUENCES
    sent_bytes = 0

    def over_http() -> None:
        nonlocal sent_bytes
        reply = client.post("/v1/completions", json=body)
        reply.raise_for_status()
        sent_bytes = len(reply.content)
        reply.json()

    def over_grpc() -> None:
        teacher.score(list(ids), asked, Representation("top_k", k), TEMPERATURE)

    over_grpc()
    teacher.take_received()
    over_grpc()
    received_bytes, positions = teacher.take_received()
    timed = paired(over_http, over_grpc, pairs)
    return {
        "top_k": k,
        "http_tokens_per_second": positions / timed.ours_seconds,
        "grpc_tokens_per_second": positions / timed.baseline_seconds,
        "http_against_grpc": 1 / timed.ratio,
        "http_bytes_per_token": sent_bytes / positions,
        "grpc_bytes_per_token": received_bytes / positions,
    }


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
    return port
