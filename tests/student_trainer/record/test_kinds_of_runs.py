"""Records of all that a run can be: replicas, adapters, several ranks, a BOS, packed chats."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lectern_common.teacher.channel import TeacherChannel
from lectern_common.teacher.record.manifest import read_record_manifest
from tests.student_trainer.record.test_recorded_runs import (
    bytes_of,
    exported,
    from_record,
    made,
    online,
)
from tests.student_trainer.test_main import process
from tests.support.models import write_tiny_model
from tests.support.servers import TeacherThread, teacher_of
from tests.support.training.runs import VOCAB_SIZE, Home, curve, events_of, status_of, trained
from tests.support.training.shards import write_shards

EPOCH: dict[str, Any] = {
    "schedule": {"steps": 56, "warmup_steps": 2},
    "evaluation": {"every_steps": 28},
    "checkpoint": {"every_steps": 14},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    return write_tiny_model(folder / "teacher", vocab_size=VOCAB_SIZE, hidden=32, seed=1)


@pytest.fixture(scope="module")
def served(model: Path) -> Iterator[TeacherThread]:
    with teacher_of(model) as teacher:
        yield teacher


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def same_from_a_record(home: Home, served: TeacherThread, **sections: Any) -> None:
    """Requires that the run from a record, and from what the run kept, is the run online."""
    kept = home.run(**sections, **online(served, record_to="kept"))
    assert trained(home, kept) == 0, status_of(kept).message
    made(home, home.spec("recording", **sections, **online(served)))
    for record in ("answers", "kept"):
        folder = home.run(**sections, **from_record(record))
        assert trained(home, folder) == 0, status_of(folder).message
        assert curve(folder, "loss/kd") == curve(kept, "loss/kd")
        assert curve(folder, "val/kl") == curve(kept, "val/kl")
        assert exported(folder) == exported(kept)


@pytest.mark.long
def test_two_replicas_make_the_record_of_one(home, served, model, tmp_path):
    made(home, home.spec("recording", **online(served)), "one")
    with teacher_of(model) as second:
        both = f"{served.address},{second.address}"
        spec = home.spec("recording", objective={"alpha": 0.2}, teacher={"address": both})
        made(home, spec, "two")
        with TeacherChannel(second.address) as channel:
            assert channel.get_stats().sent_bytes > 0
    one, two = (read_record_manifest(home.roots.data / name) for name in ("one", "two"))
    assert one == two
    for path in ("training/rows.bin", "training/index.bin"):
        assert bytes_of(home.roots.data / "one")[path] == bytes_of(home.roots.data / "two")[path]


def test_adapters_learn_from_a_record(home, served):
    home.model("pretrained", seed=3)
    student = {"init": "pretrained", "config": None, "lora": {"rank": 2}}
    same_from_a_record(home, served, student=student)


def test_rows_that_begin_with_a_bos_are_recorded_with_it(home, served):
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE - 1, 600)
    bos: dict[str, Any] = {"bos_policy": "row", "bos_token_id": VOCAB_SIZE - 1}
    write_shards(home.path / "data" / "begun", tokens, vocab_size=VOCAB_SIZE, **bos)
    same_from_a_record(home, served, data={"path": "begun"})
    write_shards(home.path / "data" / "plain", tokens, vocab_size=VOCAB_SIZE)
    folder = home.run(data={"path": "plain"}, **from_record())
    assert trained(home, folder) == 1
    assert "is not in the record answers" in str(status_of(folder).message)


def write_chats(home: Home, name: str = "chats", order: int = 0) -> None:
    """Writes 60 chats of 2 to 7 tokens, of which the last ones are learnt."""
    draw = np.random.default_rng(2)
    chats = [draw.integers(0, VOCAB_SIZE, draw.integers(2, 8)) for _ in range(60)]
    chosen = [chats[i] for i in np.random.default_rng(order).permutation(60)] if order else chats
    write_shards(
        home.path / "data" / name,
        np.concatenate(chosen),
        vocab_size=VOCAB_SIZE,
        documents=np.cumsum([0, *(len(chat) for chat in chosen[:-1])]),
        mask=np.concatenate([np.arange(len(chat)) >= len(chat) // 2 for chat in chosen]),
    )


def test_packed_chats_are_found_however_they_are_packed(home, served):
    write_chats(home)
    data = {"path": "chats", "seq_len": 16}
    same_from_a_record(home, served, data=data, batch={"sequences_per_step": 2})
    # Other rows of the same chats, each a document by itself: another order packs them anew.
    write_chats(home, "shuffled", order=5)
    folder = home.run(
        data={**data, "path": "shuffled", "validation_fraction": 0.1},
        batch={"sequences_per_step": 2},
        **from_record(),
    )
    assert trained(home, folder) == 0, status_of(folder).message


@pytest.mark.long
def test_samples_of_a_run_from_a_record_have_no_text_of_its_teacher(home, served):
    home.model("words", vocab_size=300, tokenizer=True)
    home.tokenized()
    teacher = write_tiny_model(home.path / "teacher", vocab_size=300, hidden=32, tokenizer=True)
    sections: dict[str, Any] = {
        "student": {"config": "words"},
        "data": {"path": "bytes"},
        "evaluation": {"every_steps": 3, "prompts": ["def add("], "prompt_tokens": 4},
    }
    with teacher_of(teacher) as other:
        made(home, home.spec("recording", **sections, **online(other)))
    folder = home.run(**sections, **from_record())
    assert trained(home, folder) == 0, status_of(folder).message
    said = [event for event in events_of(folder, "left_out") if "samples" in event["metric"]]
    assert [event["message"] for event in said] == [
        "a record answers only about the rows of its data"
    ]


@pytest.mark.long
def test_two_ranks_keep_what_one_records_and_learn_from_it(home, served):
    two = {"kind": "cpu", "threads": 1, "count": 2}
    alone = home.run(**EPOCH, **online(served))
    assert trained(home, alone) == 0
    made(home, home.spec("recording", **online(served)))
    kept = home.run(**EPOCH, device=two, **online(served, record_to="kept"))
    learnt = home.run(**EPOCH, device=two, **from_record())
    for folder in (kept, learnt):
        with process(home, folder) as trainer:
            assert trainer.wait(400) == 0, folder.log_path.read_text()[-3000:]
        np.testing.assert_allclose(curve(folder, "loss/kd"), curve(alone, "loss/kd"), rtol=1e-5)
    assert bytes_of(home.roots.data / "kept") == bytes_of(home.roots.data / "answers")
