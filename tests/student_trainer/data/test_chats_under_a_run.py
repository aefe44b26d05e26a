"""Runs that learn from chats: what they record, and how they resume, old ones too."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lectern_common.errors import Incompatible
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState
from student_trainer.data.sources import ShardBatchSource
from student_trainer.pipeline import Pipeline
from student_trainer.stop import Stop
from tests.support.training.parts import CPU, tiny_student, tiny_teacher
from tests.support.training.runs import (
    VOCAB_SIZE,
    Home,
    assembled,
    compared,
    curve,
    events_of,
    lines_of,
    status_of,
    trained,
)
from tests.support.training.shards import write_shards
from tests.support.training.wire_teacher import Serving, WireTeacher


def write_chats(home: Home, name: str = "chats", **fields: Any) -> Path:
    """Writes 120 chats of 3 to 14 tokens: a cycle from anywhere, its first half not learnt."""
    draw = np.random.default_rng(4)
    lengths = draw.integers(3, 15, 120)
    parts = [(draw.integers(VOCAB_SIZE) + np.arange(length)) % VOCAB_SIZE for length in lengths]
    return write_shards(
        home.path / "data" / name,
        np.concatenate(parts),
        vocab_size=VOCAB_SIZE,
        documents=np.concatenate([[0], np.cumsum(lengths)[:-1]]),
        mask=np.concatenate([np.arange(length) >= length // 2 for length in lengths]),
        shards=2,
        **fields,
    )


CHATS = {"path": "chats", "seq_len": 20}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    write_chats(home)
    return home


def test_a_run_learns_from_chats_and_says_how_they_lie_in_its_rows(home: Home) -> None:
    schedule = {"steps": 60, "warmup_steps": 0}
    folder = home.run(data=CHATS, schedule=schedule, evaluation={"every_steps": 60})
    assert trained(home, folder) == 0
    first, last = curve(folder, "loss/val")
    assert last < 1.0 < 3.0 < first
    [event] = events_of(folder, "assembled")
    assert event["attention_across_documents"] is False
    assert event["training_chats"] == 108 and event["chats_cut"] == 0
    assert 0 < event["padding"] < 0.2
    [checkpoint] = [path for path in folder.checkpoints_path.iterdir() if path.name.endswith("60")]
    state = json.loads((checkpoint / "state.json").read_text())
    assert state["spec"]["data"]["attention_across_documents"] is False
    assert state["spec"]["data"]["long_chats"] == "cut"
    assert state["packs_chats"] is True


def test_padding_is_neither_a_token_seen_nor_asked_about(home: Home) -> None:
    teacher = WireTeacher()
    with Serving(teacher) as serving:
        folder = home.run(
            data=CHATS,
            teacher={"address": serving.address},
            objective={"alpha": 0.5},
            evaluation={"every_steps": 100},
        )
        with assembled(home, folder, steps=6) as run:
            batches = [run.parts.batches.batch_at(step) for step in range(6)]
    lines = [line for line in lines_of(folder) if line["step"] > 0]
    tokens = [batch.num_tokens for batch in batches]
    assert any(count < batch.inputs_BS.size for count, batch in zip(tokens, batches, strict=True))
    assert [line["data/tokens_seen"] for line in lines] == np.cumsum(tokens).tolist()
    assert [line["data/valid_tokens"] for line in lines] == [b.num_valid for b in batches]


@pytest.mark.parametrize("rule", ["cut", "drop", "error"])
def test_long_chats_are_treated_as_the_spec_says(home: Home, rule: str) -> None:
    folder = home.run(data={**CHATS, "seq_len": 9, "long_chats": rule})
    code = trained(home, folder)
    if rule == "error":
        assert code != 0
        assert "data.long_chats: error: " in str(status_of(folder).message)
        return
    assert code == 0
    [event] = events_of(folder, "assembled")
    assert (event["chats_cut"] > 20) == (rule == "cut")
    assert (event["chats_dropped"] > 20) == (rule == "drop")


def test_a_student_that_cannot_keep_chats_apart_is_refused(home: Home) -> None:
    home.model("opt", architecture="opt", weights=False, ffn_dim=16, word_embed_proj_dim=16)
    folder = home.run(student={"config": "opt"}, data=CHATS)
    assert trained(home, folder) != 0
    status = status_of(folder)
    assert status.state == RunState.FAILED and status.reason == Incompatible.reason
    assert "data.attention_across_documents false" in str(status.message)
    assert "Set it to true" in str(status.message)
    together = home.run(
        student={"config": "opt"}, data={**CHATS, "attention_across_documents": True}
    )
    assert trained(home, together) == 0
    [event] = events_of(together, "assembled")
    assert event["attention_across_documents"] is True and event["training_chats"] == 108


def test_a_resumed_run_has_the_rows_of_an_undisturbed_one(home: Home) -> None:
    undisturbed = home.run("undisturbed", data=CHATS)
    assert trained(home, undisturbed) == 0
    stopped = home.run("stopped", data=CHATS)
    stop_after(home, stopped, 3)
    assert trained(home, stopped, resume=True) == 0
    assert compared(stopped) == compared(undisturbed)
    assert not events_of(stopped, "rows_as_before")


def test_a_run_of_an_older_version_goes_on_with_the_rows_it_began_with(home: Home) -> None:
    """Its spec and checkpoints say nothing of chats, which it cut at the ends of rows."""
    # The same bytes, read as that version did.
    write_chats(home, "stream", content="text")
    data = {**CHATS, "path": "stream", "attention_across_documents": True}
    undisturbed = home.run("undisturbed", data=data)
    assert trained(home, undisturbed) == 0
    old = home.run("old", data=data)
    stop_after(home, old, 3)
    made_by_an_older_version(old)
    write_chats(home, "stream")  # a mask, and nothing about the content
    assert trained(home, old, resume=True) == 0
    assert compared(old) == compared(undisturbed)
    [event] = events_of(old, "rows_as_before")
    assert "began before chats were kept whole" in event["message"]
    # What it writes itself says the same, so it can be resumed again.
    spec = old.read_spec()
    longer = spec.schedule.model_copy(update={"steps": 8})
    old.write_spec(spec.model_copy(update={"schedule": longer}))
    with assembled(home, old, resume=True) as run:
        assert run.progress.step == 6 and not run.data.packs_chats
    whole = home.run("whole", data=data)
    with assembled(home, whole) as run:
        assert run.data.packs_chats


def test_null_in_the_spec_of_a_resume_means_what_the_run_began_with(home: Home) -> None:
    folder = home.run(data={**CHATS, "attention_across_documents": True, "long_chats": "drop"})
    stop_after(home, folder, 3)
    spec = folder.read_spec()
    null = {"attention_across_documents": None, "long_chats": None}
    folder.write_spec(spec.model_copy(update={"data": spec.data.model_copy(update=null)}))
    with assembled(home, folder, resume=True) as run:
        assert run.spec.data.attention_across_documents is True
        assert run.spec.data.long_chats == "drop"


def test_a_pipeline_learns_from_chats_apart(home: Home, tmp_path: Path) -> None:
    source = ShardBatchSource.open(home.path / "data/chats")
    result = (
        Pipeline(batches_per_epoch=4, batch_size=4, seq_len=20, learning_rate=5e-3)
        .with_teacher(tiny_teacher(tmp_path / "teacher"), "hidden")
        .with_student(tiny_student(tmp_path / "student"))
        .with_batch_source(source)
        .execute()
    )
    assert result.metrics["loss"][-1] < result.metrics["loss"][0]
    seen = result.metrics["steps"][-1]["data/tokens_seen"]
    source.reset()
    batches = [source.next_rows(4, 20) for _ in range(4)]
    assert seen == sum(batch.num_tokens for batch in batches) < 4 * 4 * 20
    home.model("opt", architecture="opt", ffn_dim=16, word_embed_proj_dim=16)
    opt = type(tiny_student(tmp_path / "x")).from_pretrained(home.path / "models/opt", CPU)
    refused = Pipeline(seq_len=20, alpha=1.0).with_student(opt).with_batch_source(source)
    with pytest.raises(Incompatible, match="lets a document see the one before it"):
        refused.execute()


def stop_after(home: Home, folder: RunFolder, steps: int) -> None:
    """Trains until `steps` are made, as if a stop was requested then."""
    from student_trainer.data.rows import ShuffledBatches

    stop, read = Stop(), ShuffledBatches.batch_at

    def batch_at(self: ShuffledBatches, step: int) -> Any:
        if step == steps:
            stop.request()
        return read(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShuffledBatches, "batch_at", batch_at)
        assert trained(home, folder, stop=stop) == 0
    assert status_of(folder).state == RunState.STOPPED


def made_by_an_older_version(folder: RunFolder) -> None:
    """Takes out of the spec and of every checkpoint what older versions did not write."""
    text = folder.spec_path.read_text()
    folder.spec_path.write_text(text.replace("  long_chats: null\n", ""))
    assert "long_chats" not in folder.spec_path.read_text() != text
    for checkpoint in folder.checkpoints_path.iterdir():
        state = json.loads((checkpoint / "state.json").read_text())
        del state["packs_chats"], state["spec"]["data"]["long_chats"]
        data = json.dumps(state).encode()
        (checkpoint / "state.json").write_bytes(data)
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        facts = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest["files"]["state.json"] = facts
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
