"""Measures what gRPC, padding, sharing and a large vocabulary cost the teacher server.

    engine      tokens scored through gRPC against the bare body forward of the same tokens, at its
                best batch size
    batching    `throughput` through gRPC against padded batches of 16 in arrival order, over the
                file lengths of the standard library (bytes / 4, at most 2,048 tokens)
    fairness    four clients' total against one client that saturates the server; and the most
                served of the four against the least, over 50 quanta each
    cache       forwards in a second epoch
    memory      growth of the server's peak while it scores top_k, at V = 151,936 against V = 2,048

The body has 3 M random weights. One thread per side; the server runs in its own process.
"""

import contextlib
import sysconfig
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from benchmarks.memory import MemoryGrowth
from benchmarks.pairs import paired, seconds
from benchmarks.servers import Served, served, write_model
from lectern_common.logs import configure_logs
from lectern_common.teacher.channel import TeacherChannel
from lectern_common.wire.formats import PROTOCOL_VERSION, Representation
from protos import teacher_pb2
from teacher_server.scheduling.fair_share import QUANTUM_TOKENS

VOCAB_SIZE, LARGE_VOCAB_SIZE = 2_048, 151_936
MAX_TOKENS = 2_048
# Tokens per request, and requests in flight, as in the trainer.
REQUEST_TOKENS, IN_FLIGHT = 8_192, 4
HIDDEN, TOP_K = Representation("hidden"), Representation("top_k", 64)

Tokens = npt.NDArray[np.uint32]


def config(vocab_size: int) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": vocab_size,
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 704,
        "max_position_embeddings": MAX_TOKENS,
        "tie_word_embeddings": True,
    }


def measure(pairs: int = 5) -> Iterator[dict[str, Any]]:
    """Yields one row per figure."""
    torch.set_num_threads(1)
    configure_logs("warning")
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = write_model(folder / "teacher", config(VOCAB_SIZE))
        body: Any = AutoModelForCausalLM.from_pretrained(model).eval().get_decoder()
        for mode in ("throughput", "independent"):
            with served(model, folder, "--mode", mode, "--cache-bytes", "0") as server:
                yield _engine(server, body, mode, pairs)
        with served(model, folder, "--mode", "throughput", "--cache-bytes", "0") as server:
            yield _batching(server, body, pairs)
        with served(model, folder, "--mode", "throughput", "--cache-bytes", "0") as server:
            yield from _fairness(server, pairs)
        with served(model, folder) as server:
            yield _second_epoch(server)
        yield _memory(folder)


def _engine(server: Served, body: Any, mode: str, pairs: int) -> dict[str, Any]:
    sequences = _random_sequences([256] * 96)
    batches = {size: _batches(sequences, size) for size in (1, 2, 4, 8, 16)}
    _forward(body, batches[4])
    best = min(batches, key=lambda size: seconds(lambda: _forward(body, batches[size])))
    with Client(server.address) as client:
        result = paired(
            lambda: client.score(sequences), lambda: _forward(body, batches[best]), pairs
        )
    num_tokens = sum(map(len, sequences))
    return {
        "figure": f"engine, {mode}",
        "speed_against_bare_forward": 1 / result.ratio,
        "tokens_per_second": num_tokens / result.ours_seconds,
        "bare_tokens_per_second": num_tokens / result.baseline_seconds,
        "bare_batch_size": best,
        "pairs": pairs,
        "goals": {"speed_against_bare_forward": ">= 0.9"} if mode == "throughput" else {},
    }


def _batching(server: Served, body: Any, pairs: int) -> dict[str, Any]:
    lengths = file_lengths()
    sequences = _random_sequences(np.random.default_rng(0).permutation(lengths)[:64].tolist())
    padded = _batches(sequences, 16)
    with Client(server.address) as client:
        result = paired(lambda: client.score(sequences), lambda: _forward(body, padded), pairs)
        stats = client.stats()
    num_tokens = sum(map(len, sequences))
    return {
        "figure": "batching, file lengths",
        "speed_against_padded_16": 1 / result.ratio,
        "tokens_per_second": num_tokens / result.ours_seconds,
        "padding": stats.padding_tokens / stats.scored_tokens,
        "padding_of_padded_16": sum(ids.numel() for ids, _ in padded) / num_tokens - 1,
        "pairs": pairs,
        "goals": {"speed_against_padded_16": ">= 1.8"},
    }


def _fairness(server: Served, pairs: int) -> Iterator[dict[str, Any]]:
    num_clients = 4
    lengths = np.random.default_rng(1).permutation(file_lengths())
    work = _random_sequences(lengths[:64].tolist())
    with contextlib.ExitStack() as stack:
        names = [f"run-{index}" for index in range(num_clients)]
        four = [stack.enter_context(Client(server.address, name)) for name in names]

        def together() -> None:
            parts = [work[index::num_clients] for index in range(num_clients)]
            with ThreadPoolExecutor(num_clients) as threads:
                list(
                    threads.map(lambda pair: pair[0].score(pair[1]), zip(four, parts, strict=True))
                )

        with Client(server.address, "single") as single:
            total = paired(
                together, lambda: single.score(work, in_flight=num_clients * IN_FLIGHT), pairs
            )
        yield {
            "figure": "four clients against one",
            "total_against_one": 1 / total.ratio,
            "pairs": pairs,
            "goals": {"total_against_one": ">= 0.95"},
        }
        served_tokens = _served_while_all_wait(four, 50 * QUANTUM_TOKENS)
        yield {
            "figure": "four clients, 50 quanta each",
            "most_against_least": max(served_tokens) / min(served_tokens),
            "tokens_least": min(served_tokens),
            "tokens_most": max(served_tokens),
            "goals": {"most_against_least": "<= 1.1"},
        }


def _served_while_all_wait(clients: Sequence["Client"], tokens_each: int) -> list[int]:
    """Returns the tokens served to each client while all of them keep requests waiting.

    Each client sends its own range of lengths, from short to long.
    """
    enough, stop = tokens_each * len(clients), threading.Event()
    before = _tokens_by_run(clients[0])

    def flood(index: int) -> None:
        generator = np.random.default_rng(index)
        while not stop.is_set():
            lengths = generator.integers(64 << index, 128 << index, REQUEST_TOKENS // (96 << index))
            try:
                clients[index].score(_random_sequences(lengths.tolist(), generator))
            except grpc.RpcError:
                if not stop.is_set():
                    raise

    threads = [threading.Thread(target=flood, args=(i,)) for i in range(len(clients)) for _ in "12"]
    for thread in threads:
        thread.start()
    while True:
        now = _tokens_by_run(clients[0])
        got = [now[client.run_id] - before.get(client.run_id, 0) for client in clients]
        if sum(got) >= enough:
            break
        stop.wait(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    return got


def _tokens_by_run(client: "Client") -> dict[str, int]:
    return {run.run_id: run.tokens for run in client.stats().runs}


def _second_epoch(server: Served) -> dict[str, Any]:
    sequences = _random_sequences([256] * 96)
    with Client(server.address, "first") as first, Client(server.address, "second") as second:
        first_seconds = seconds(lambda: first.score(sequences))
        forwards = first.stats().forwards
        second_seconds = seconds(lambda: second.score(sequences[::-1]))
        again = first.stats().forwards - forwards
    return {
        "figure": "second epoch, another run",
        "forwards_first": forwards,
        "forwards_second": again,
        "speed_against_first": first_seconds / second_seconds,
        "goals": {"forwards_second": "<= 0"},
    }


def _memory(folder: Path) -> dict[str, Any]:
    sequences = _random_sequences([1024] * 8)
    growth = {}
    for vocab_size in (VOCAB_SIZE, LARGE_VOCAB_SIZE):
        model = write_model(folder / f"teacher-{vocab_size}", config(vocab_size))
        with (
            served(model, folder, "--cache-bytes", "0") as server,
            Client(server.address) as client,
        ):
            for asked in (HIDDEN, TOP_K):
                client.score([sequences[0][:1]], asked=asked, vocab=vocab_size)  # warm-up
            above = MemoryGrowth(server.pid)
            client.score(sequences, asked=TOP_K, vocab=vocab_size)
            growth[vocab_size] = above.peak_bytes()
    small, large = growth[VOCAB_SIZE], growth[LARGE_VOCAB_SIZE]
    return {
        "figure": "memory, top_k of 8,192 tokens",
        "growth_mib": small / 2**20,
        "growth_mib_large_vocabulary": large / 2**20,
        "logits_of_all_tokens_mib": sum(map(len, sequences)) * LARGE_VOCAB_SIZE * 4 / 2**20,
    }


class Client:
    """Requests rows and reads them as the trainer does, several requests in flight."""

    def __init__(self, address: str, run_id: str = "benchmark") -> None:
        self.run_id = run_id
        self._channel = TeacherChannel(address)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def stats(self) -> teacher_pb2.Stats:
        return self._channel.get_stats()

    def score(
        self,
        sequences: Sequence[Tokens],
        in_flight: int = IN_FLIGHT,
        asked: Representation = HIDDEN,
        vocab: int = VOCAB_SIZE,
    ) -> None:
        """Scores sequences in requests of about REQUEST_TOKENS tokens."""
        requests: list[list[Tokens]] = [[]]
        for ids in sequences:
            if sum(map(len, requests[-1])) >= REQUEST_TOKENS:
                requests.append([])
            requests[-1].append(ids)
        with ThreadPoolExecutor(in_flight) as threads:
            list(threads.map(lambda part: self._ask(part, asked, vocab), requests))

    def _ask(self, part: list[Tokens], asked: Representation, vocab: int) -> None:
        request = teacher_pb2.LogitsForBatchRequest(
            protocol_version=PROTOCOL_VERSION,
            run_id=self.run_id,
            token_ids=np.concatenate(part).astype("<u4").tobytes(),
            sequence_lengths=[len(ids) for ids in part],
            positions=teacher_pb2.POSITIONS_ALL,
            vocab_size=vocab,
            representation=asked.message(),
            temperature=1.0,
        )
        rows = 0
        for reply in self._channel.stub.LogitsForBatch(request, timeout=600):
            rows += reply.piece.num_rows
        if rows != sum(map(len, part)):
            raise RuntimeError("rows are missing")


def _forward(body: Any, batches: Sequence[tuple[torch.Tensor, torch.Tensor | None]]) -> None:
    with torch.inference_mode():
        for ids_BS, mask_BS in batches:
            body(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False)


def _batches(
    sequences: Sequence[Tokens], size: int
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Returns right-padded batches in order, with a mask if there is padding."""
    batches: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    for start in range(0, len(sequences), size):
        part = sequences[start : start + size]
        ids_BS = np.zeros((len(part), max(map(len, part))), np.int64)
        mask_BS = np.zeros_like(ids_BS)
        for row, row_mask, ids in zip(ids_BS, mask_BS, part, strict=True):
            row[: len(ids)], row_mask[: len(ids)] = ids, 1
        mask = None if mask_BS.all() else torch.from_numpy(mask_BS)
        batches.append((torch.from_numpy(ids_BS), mask))
    return batches


def file_lengths() -> npt.NDArray[np.int64]:
    root = Path(sysconfig.get_path("stdlib"))
    own = (path for path in sorted(root.rglob("*.py")) if "site-packages" not in path.parts)
    sizes = [path.stat().st_size for path in own if not {"test", "tests"} & set(path.parts)]
    return np.clip(np.array(sizes, np.int64) // 4, 1, MAX_TOKENS)


def _random_sequences(
    lengths: Sequence[int], generator: np.random.Generator | None = None
) -> list[Tokens]:
    generator = generator or np.random.default_rng(2)
    return [generator.integers(VOCAB_SIZE, size=length, dtype=np.uint32) for length in lengths]
