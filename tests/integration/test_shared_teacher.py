"""One teacher process and several runs: caching, sharing, batching, quotas."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import teacher_server.__main__ as teacher_server
from protos import teacher_pb2 as pb
from tests.support.asking import connect, refused, request, score, stub
from tests.support.models import write_tiny_model
from tests.support.servers import teacher_process

V = 97
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("hidden", {}),
    ("dense", {}),
    ("top_k", {"top_k": 5}),
    ("sampled", {"num_draws": 20}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("teacher"), layers=3, vocab_size=V)


def sequences(seed: int, lengths: list[int]) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(V, size=length).tolist() for length in lengths]


def stats(address: str) -> pb.Stats:
    with connect(address) as channel:
        found: pb.Stats = stub(channel).GetStats(pb.GetStatsRequest(protocol_version=1))
        return found


def together(address: str, messages: list) -> Iterator[bytes]:
    with ThreadPoolExecutor(len(messages)) as clients:
        return clients.map(lambda message: score(address, message).payload, messages)


@pytest.mark.long
def test_a_restarted_teacher_answers_from_the_disk_cache(folder: Path, tmp_path: Path) -> None:
    options = ["--model", str(folder), "--threads", "1", "--cache-folder", str(tmp_path / "cache")]
    batch = sequences(0, [40, 17, 64])
    messages = [request(batch, kind, run_id=f"run-{kind[0]}", **more) for kind, more in KINDS]
    with teacher_process(tmp_path, *options) as teacher:
        first = [score(teacher.address, message).payload for message in messages]
        assert stats(teacher.address).scored_sequences == 3
        while stats(teacher.address).cache.disk_used_bytes < 3 * 17 * 32 * 4:
            pass  # rows are written to disk after the answers
        files = {path: path.stat().st_size for path in (tmp_path / "cache").glob("*/*/*")}
        assert len(files) == 3
        teacher.kill()  # no chance to clean up
    with teacher_process(tmp_path, *options) as teacher:
        again = [score(teacher.address, message).payload for message in messages]
        now = stats(teacher.address)
    assert again == first
    assert (now.forwards, now.cache.disk_hits, now.cache.hits) == (0, 3, 12)
    with teacher_process(tmp_path, *options, "--mode", "throughput") as teacher:
        score(teacher.address, messages[0])
        assert stats(teacher.address).scored_sequences == 3  # modes do not share cached rows


def test_runs_over_the_same_data_cost_one_pass(folder: Path, tmp_path: Path) -> None:
    batch = sequences(1, [30] * 16)
    messages = [request(batch, kind, run_id=f"run-{kind[0]}", **more) for kind, more in KINDS]
    with teacher_process(tmp_path, "--model", str(folder), "--threads", "1") as teacher:
        payloads = list(together(teacher.address, messages))
        now = stats(teacher.address)
    assert all(payloads)
    assert now.scored_sequences == 16
    assert (now.cache.hits, now.cache.misses) == (3 * 16, 16)
    assert sum(run.tokens for run in now.runs) <= 16 * 30 + len(messages)
    assert sum(run.cache_hits for run in now.runs) == 3 * 16


@pytest.mark.long
def test_throughput_pads_little_and_agrees_with_standalone_forwards(
    folder: Path, tmp_path: Path
) -> None:
    lengths = np.random.default_rng(2).integers(20, 120, 60).tolist()
    batch = sequences(2, lengths)
    options = ["--model", str(folder), "--mode", "throughput", "--batch-tokens", "512"]
    with teacher_process(tmp_path, *options, "--threads", "1") as teacher:
        answer = score(teacher.address, request(batch))
        now = stats(teacher.address)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        alone = [model(torch.tensor([tokens])).logits[0].numpy() for tokens in batch]
        model.double()
        exact = [model(torch.tensor([tokens])).logits[0].numpy() for tokens in batch]
    logits = np.concatenate(exact)
    error = np.abs(answer.floats - logits).max(-1)
    assert (error <= 5e-6 * np.abs(logits).max(-1)).all()  # docs/teacher.md
    assert (answer.floats != np.concatenate(alone)).any()  # another batch, other rounding
    assert now.mode == "throughput"
    assert now.padding_tokens / now.scored_tokens < 0.02
    assert now.forwards < len(batch) / 2


@pytest.mark.long
def test_a_quota_and_a_weight_apply_to_the_runs_they_name(folder: Path, tmp_path: Path) -> None:
    options = ["--run-quota", "greedy-*=50", "--run-weight", "big-*=3"]
    batch = sequences(3, [40, 40])
    with teacher_process(tmp_path, "--model", str(folder), *options) as teacher:
        score(teacher.address, request(batch, run_id="greedy-1"))
        code, detail, trailing = refused(teacher.address, request(batch, run_id="greedy-1"))
        assert code == "RESOURCE_EXHAUSTED" and "quota of 50 tokens a minute" in detail
        assert int(trailing["grpc-retry-pushback-ms"]) > 20_000
        score(teacher.address, request(batch, run_id="big-1"))
        score(teacher.address, request(batch, run_id="big-1"))
        weights = {run.run_id: run.weight for run in stats(teacher.address).runs}
    assert weights == {"greedy-1": 1.0, "big-1": 3.0}


def test_an_unusable_cache_folder_stops_the_start_with_one_message(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    options = ["--model", str(folder), "--cache-folder", str(tmp_path / "file")]
    assert teacher_server.main(["--bind", "127.0.0.1:0", *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    [said] = [line for line in lines if line.startswith("lectern teacher: ")]
    assert "cannot use the cache folder" in said
