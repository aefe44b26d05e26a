"""Runs whose data changes while they read it, and runs that keep documents apart."""

from pathlib import Path

import numpy as np
import pytest

from lectern_common.errors import Incompatible
from lectern_common.run.status import RunState
from student_trainer.batch import Batch
from student_trainer.data.rows import ShuffledBatches
from tests.support.training.runs import VOCAB_SIZE, Home, compared, curve, status_of, trained
from tests.support.training.shards import write_shards

# What __main__ says to a supervisor: interrupted, to be resumed unchanged.
INTERRUPTED = 75


def test_a_shard_truncated_during_a_run_ends_it_resumable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S13: once the shard is restored, the run continues as if nothing had happened."""
    home = Home(tmp_path)
    undisturbed = home.run("undisturbed")
    trained(home, undisturbed)
    shard = tmp_path / "data/text/shard-00000.bin"
    whole, facts = shard.read_bytes(), shard.stat()
    read = ShuffledBatches.batch_at

    def batch_at(self: ShuffledBatches, step: int) -> Batch:
        if step == 3:
            with shard.open("r+b") as file:
                file.truncate(8)
        return read(self, step)

    folder = home.run("cut-off")
    with monkeypatch.context() as patch:
        patch.setattr(ShuffledBatches, "batch_at", batch_at)
        assert trained(home, folder) == INTERRUPTED
    status = status_of(folder)
    assert status.state == RunState.INTERRUPTED and status.reason == "data_unavailable"
    assert "shard-00000.bin changed while the run was reading it" in str(status.message)
    assert status.checkpoint_step == 3

    shard.write_bytes(whole)
    assert facts.st_size == shard.stat().st_size
    assert trained(home, folder, resume=True) == 0
    assert compared(folder) == compared(undisturbed)


def with_documents(home: Home) -> None:
    """Writes dataset `documents`: 1 to 11 tokens each, a cycle from a random start."""
    draw = np.random.default_rng(2)
    lengths = draw.integers(1, 12, 150)
    parts = [(draw.integers(VOCAB_SIZE) + np.arange(length)) % VOCAB_SIZE for length in lengths]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    tokens = np.concatenate(parts)
    folder = home.path / "data/documents"
    write_shards(folder, tokens, vocab_size=VOCAB_SIZE, documents=starts, shards=2)


def test_a_run_learns_from_documents_kept_apart(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with_documents(home)
    spec = {"path": "documents", "attention_across_documents": False}
    schedule = {"steps": 60, "warmup_steps": 0}
    apart = home.run(data=spec, schedule=schedule, evaluation={"every_steps": 60})
    assert trained(home, apart) == 0
    first, last = curve(apart, "loss/val")
    # A label that counts follows from its own document; the first token of another does not.
    assert last < 1.0 < 3.0 < first


def test_a_student_that_cannot_keep_documents_apart_is_refused(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with_documents(home)
    home.model("opt", architecture="opt", weights=False, ffn_dim=16, word_embed_proj_dim=16)
    data = {"path": "documents", "attention_across_documents": False}
    folder = home.run(student={"config": "opt"}, data=data)
    assert trained(home, folder) != 0
    status = status_of(folder)
    assert status.state == RunState.FAILED and status.reason == Incompatible.reason
    assert "lets a document see the one before it" in str(status.message)
    together = home.run(student={"config": "opt"}, data={"path": "documents"})
    assert trained(home, together) == 0
