"""Forks: runs that begin with a checkpoint of another one."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lectern_common.run.folder import ForkedFrom, RunFolder
from lectern_common.run.status import RunState
from lectern_common.teacher.identity import TeacherIdentity
from student_trainer.journal.checkpoint import read_checkpoint
from student_trainer.stop import Stop
from tests.support.training.forks import forked
from tests.support.training.runs import (
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

KEPT: dict[str, Any] = {
    "schedule": {"steps": 12, "warmup_steps": 2},
    "checkpoint": {"every_steps": 4, "keep_last": 9},
}
# Of the same shape, but trained from other weights.
LORA = {"init": "base", "config": None, "lora": {"rank": 2, "dropout": 0.3}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("home"))
    home.model("base")
    return home


@pytest.fixture(scope="module")
def source(home: Home) -> RunFolder:
    folder = home.run("source", **KEPT)
    assert trained(home, folder) == 0
    return folder


def weights_of(folder: RunFolder, step: int) -> tuple[bytes, ...]:
    path = folder.checkpoints_path / f"step-{step:08d}"
    return tuple((path / f"{name}.safetensors").read_bytes() for name in ("model", "optimizer"))


def export_of(folder: RunFolder) -> bytes:
    return (folder.export_path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("step", [4, 8])
@pytest.mark.parametrize("student", [{}, LORA], ids=["whole", "adapters"])
def test_a_fork_without_changes_ends_with_the_bytes_of_the_source(
    home: Home, step: int, student: dict[str, Any]
) -> None:
    source = home.run(student=student, **KEPT)
    assert trained(home, source) == 0
    folder = forked(home, source, step=step)
    assert trained(home, folder, resume=True) == 0
    assert weights_of(folder, 12) == weights_of(source, 12)
    assert export_of(folder) == export_of(source)
    after = [line for line in compared(source) if line["step"] > step]
    assert [line for line in compared(folder) if line["step"] > step] == after


def test_a_distilled_fork_without_changes_ends_with_the_bytes_of_the_source(home: Home) -> None:
    with Serving(WireTeacher()) as serving:
        teacher = {"address": serving.address, "representation": "dense"}
        source = home.run(teacher=teacher, objective={"alpha": 0.5}, **KEPT)
        assert trained(home, source) == 0
        identity = TeacherIdentity.of(serving.teacher.model)
        folder = forked(home, source, step=8, teacher=identity)
        assert trained(home, folder, resume=True) == 0
    assert weights_of(folder, 12) == weights_of(source, 12)


def test_steps_and_tokens_go_on_and_the_metrics_begin_with_an_evaluation(
    home: Home, source: RunFolder
) -> None:
    folder = forked(home, source, {"schedule": {"steps": 14}}, step=8)
    assert trained(home, folder, resume=True) == 0
    lines = lines_of(folder)
    assert [line["step"] for line in lines] == list(range(8, 15))
    assert "loss/val" in lines[0] and "loss/ce" not in lines[0]
    before = next(line for line in lines_of(source) if line["step"] == 8)
    assert lines[0]["progress/tokens"] == before["progress/tokens"]
    assert lines[0]["progress/seconds"] >= before["progress/seconds"]
    assert lines[1]["progress/tokens"] > lines[0]["progress/tokens"]
    assert curve(folder, "optim/learning_rate") != curve(source, "optim/learning_rate")[8:]


def test_the_newest_checkpoint_is_taken_and_the_folder_says_which(
    home: Home, source: RunFolder
) -> None:
    folder = forked(home, source, {"schedule": {"steps": 13}})
    assert folder.read_forked_from() == ForkedFrom("source", 12)
    assert trained(home, folder, resume=True) == 0
    assert curve(folder, "loss/val")[0] == curve(source, "loss/val")[-1]


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 5},
        {"optimizer": {"learning_rate": 0.1, "weight_decay": 0.0, "betas": [0.5, 0.9]}},
        {"data": {"path": "other", "seq_len": 6, "validation_fraction": 0.3}},
        {"data": {"kind": "synthetic"}},
        {"batch": {"sequences_per_step": 6}},
        {"evaluation": {"every_steps": 1, "patience": 2, "max_sequences": 3}},
        {"student": {"dtype": "bfloat16"}},
        {"schedule": {"steps": 10, "decay": "constant", "warmup_steps": 0}},
        {"device": {"activation_checkpointing": True}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_fork_trains_with_what_has_changed(
    home: Home, source: RunFolder, changes: dict[str, Any]
) -> None:
    tokens = np.random.default_rng(1).integers(0, 40, 900)
    write_shards(home.path / "data" / "other", tokens, vocab_size=40)
    folder = forked(home, source, changes, step=8)
    assert trained(home, folder, resume=True) == 0, status_of(folder).message
    assert status_of(folder).state is RunState.SUCCEEDED
    assert lines_of(folder)[0]["step"] == 8
    state = read_checkpoint(folder.checkpoints_path / f"step-{status_of(folder).step:08d}").state
    assert "forked_from" not in state
    assert state["data_sha256s"] is not None


def test_a_fork_may_have_another_teacher_and_keeps_that_one(home: Home, source: RunFolder) -> None:
    with Serving(WireTeacher(seed=3)) as serving, Serving(WireTeacher(seed=4)) as other:
        identity = TeacherIdentity.of(serving.teacher.model)
        changes = {"teacher": {"address": serving.address}, "objective": {"alpha": 0.5}}
        folder = forked(home, source, changes, step=4, teacher=identity)
        assert trained(home, folder, resume=True) == 0, status_of(folder).message
        assert curve(folder, "loss/kd")
        (event,) = events_of(folder, "assembled")
        assert event["probe"] is not None  # asked as a new run's teacher is
        moved = forked(
            home, source, changes, step=4, teacher=TeacherIdentity.of(other.teacher.model)
        )
        assert trained(home, moved, resume=True) == 1
        assert status_of(moved).reason == "wrong_model"
        without = {"teacher": None, "objective": {"alpha": 1}}
        assert trained(home, forked(home, folder, without, step=8), resume=True) == 0


def test_a_fork_stopped_before_its_own_checkpoint_begins_there_again(
    home: Home, source: RunFolder
) -> None:
    folder, stop = forked(home, source, {"seed": 9}, step=8), Stop()
    stop.request()
    assert trained(home, folder, resume=True, stop=stop) == 0
    assert status_of(folder).state is RunState.STOPPED
    assert folder.newest_step == 8
    assert trained(home, folder, resume=True) == 0
    at_once = forked(home, source, {"seed": 9}, step=8)
    assert trained(home, at_once, resume=True) == 0
    assert compared(folder) == compared(at_once)
    assert weights_of(folder, 12) == weights_of(at_once, 12)


@pytest.mark.parametrize("removed", [True, False])
def test_a_fork_never_begins_from_nothing(home: Home, source: RunFolder, removed: bool) -> None:
    folder = forked(home, source, step=8)
    path = folder.checkpoints_path / "step-00000008"
    if removed:
        shutil.rmtree(path)
    else:
        (path / "state.json").write_text("{}")
    for resume in (True, False) if removed else (True,):
        assert trained(home, folder, resume=resume) == 1
        status = status_of(folder)
        assert (status.state, status.reason) == (RunState.FAILED, "corrupt_data")
        assert "was forked from run source at step 8" in str(status.message)


def test_early_stopping_counts_anew_and_may_export_what_the_fork_began_with(
    home: Home, source: RunFolder
) -> None:
    changes = {
        "optimizer": {"learning_rate": 50.0},  # nothing can get better
        "evaluation": {"every_steps": 1, "patience": 2},
        "schedule": {"steps": 90},
    }
    folder = forked(home, source, changes, step=8)
    assert trained(home, folder, resume=True) == 0
    status = status_of(folder)
    assert (status.step, status.reason) == (10, "early_stopped")
    metadata = json.loads((folder.export_path / "distillation_metadata.json").read_bytes())
    assert (metadata["step"], metadata["steps_made"]) == (8, 10)
    assert metadata["validation_loss"] == curve(folder, "loss/val")[0]


def test_a_fork_outlives_its_source_and_its_source_the_fork(home: Home) -> None:
    source = home.run(**KEPT)
    assert trained(home, source) == 0
    first, second = forked(home, source, step=4), forked(home, source, step=8)
    model = Path("checkpoints/step-00000004/model.safetensors")
    assert (first.path / model).samefile(source.path / model)
    assert trained(home, first, resume=True) == 0
    kept = weights_of(source, 8)
    shutil.rmtree(first.path)
    assert weights_of(source, 8) == kept
    shutil.rmtree(source.path)
    assert trained(home, second, resume=True) == 0


def test_a_fork_of_a_fork_goes_on(home: Home, source: RunFolder) -> None:
    first = forked(home, source, step=4)
    second = forked(home, first, step=4)  # which the first has not trained yet
    assert second.read_forked_from() == ForkedFrom(first.run_id, 4)
    assert trained(home, second, resume=True) == 0
    assert weights_of(second, 12) == weights_of(source, 12)


def test_a_resume_of_a_fork_may_change_what_any_resume_may(home: Home, source: RunFolder) -> None:
    folder = forked(home, source, {"seed": 3}, step=8)
    spec = folder.read_spec()
    folder.write_spec(spec.model_copy(update={"seed": 4}))
    assert trained(home, folder, resume=True) == 1
    assert "seed: was 3, is 4" in str(status_of(folder).message)
    evaluation = spec.evaluation.model_copy(update={"every_steps": 2})
    folder.write_spec(spec.model_copy(update={"evaluation": evaluation}))
    with assembled(home, folder, resume=True) as run:
        assert run.progress.step == 8
