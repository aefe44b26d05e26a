"""What may change between a run and its resume, and what may not."""

from pathlib import Path

import numpy as np
import pytest

from lectern_common.errors import (
    Incompatible,
    InvalidSpec,
    WrongModel,
)
from lectern_common.teacher.identity import TeacherIdentity
from tests.support.training.runs import Home, assembled
from tests.support.training.shards import write_shards
from tests.support.training.wire_teacher import Serving, WireTeacher

DISTILLING = {"alpha": 0.5}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


def test_a_resume_must_not_change_what_shaped_the_run(home: Home, tmp_path: Path) -> None:
    folder = home.run()
    with assembled(home, folder, steps=6):
        pass
    spec = folder.read_spec()
    changed = spec.model_copy(
        update={
            "seed": 9,
            "optimizer": spec.optimizer.model_copy(update={"learning_rate": 0.5}),
            "evaluation": spec.evaluation.model_copy(update={"every_steps": 2}),
        }
    )
    folder.write_spec(changed)
    with pytest.raises(InvalidSpec) as caught, assembled(home, folder, resume=True):
        pass
    assert caught.value.problems == [
        ("seed", "was 0, is 9; a resume may not change it"),
        ("optimizer.learning_rate", "was 0.01, is 0.5; a resume may not change it"),
    ]


def test_other_data_is_no_missing_data_for_a_resume(home: Home) -> None:
    """What a resume may not change is said before what is wrong with it."""
    folder = home.run()
    with assembled(home, folder, steps=2):
        pass
    spec = folder.read_spec()
    data = spec.data.model_copy(update={"path": "nowhere"})
    folder.write_spec(spec.model_copy(update={"data": data}))
    with pytest.raises(InvalidSpec) as caught, assembled(home, folder, resume=True):
        pass
    assert caught.value.problems == [
        ("data.path", "was 'text', is 'nowhere'; a resume may not change it")
    ]


def test_a_resume_may_add_steps_but_not_remove_finished_ones(home: Home) -> None:
    folder = home.run()
    with assembled(home, folder, steps=6):
        pass
    spec = folder.read_spec()
    for steps, allowed in ((8, True), (5, False)):
        schedule = spec.schedule.model_copy(update={"steps": steps})
        folder.write_spec(spec.model_copy(update={"schedule": schedule}))
        if allowed:
            with assembled(home, folder, resume=True) as run:
                assert (run.progress.step, run.settings.steps) == (6, 8)
        else:
            with (
                pytest.raises(InvalidSpec, match="is 5, but the run has already made 6 steps"),
                assembled(home, folder, resume=True),
            ):
                pass


def test_a_resume_with_another_teacher_is_refused(home: Home) -> None:
    with Serving(WireTeacher(seed=0)) as first, Serving(WireTeacher(seed=1)) as second:
        folder = home.run(teacher={"address": first.address}, objective=DISTILLING)
        with assembled(home, folder, steps=6):
            pass
        spec = folder.read_spec()
        assert spec.teacher is not None
        moved = spec.teacher.model_copy(update={"address": second.address})
        folder.write_spec(spec.model_copy(update={"teacher": moved}))
        with (
            pytest.raises(WrongModel, match=r"but the run was accepted with wire \(fingerprint"),
            assembled(home, folder, resume=True),
        ):
            pass


@pytest.mark.parametrize("resume", [False, True])
def test_a_first_step_with_another_teacher_than_accepted_is_refused(
    home: Home, resume: bool
) -> None:
    """As when a run waited in a queue, or lost its trainer before the first checkpoint."""
    with Serving(WireTeacher(seed=0)) as serving:
        right = TeacherIdentity.of(serving.teacher.model)
        folder = home.run(teacher={"address": serving.address}, objective=DISTILLING)
        folder.write_teacher(TeacherIdentity("coder", "0" * 64))
        with (
            pytest.raises(WrongModel, match=r"accepted with coder \(fingerprint 000000000000\)"),
            assembled(home, folder, resume=resume),
        ):
            pass
        folder.write_teacher(right)
        with assembled(home, folder, resume=resume):
            pass


def test_a_resume_on_other_data_is_refused(home: Home) -> None:
    tokens = np.arange(290) % 37
    write_shards(home.path / "data" / "moving", tokens)
    folder = home.run(data={"path": "moving"})
    with assembled(home, folder, steps=6):
        pass
    write_shards(home.path / "data" / "moving", tokens[1:])
    with (
        pytest.raises(Incompatible, match="has changed since the run began"),
        assembled(home, folder, resume=True),
    ):
        pass


def test_a_resume_keeps_the_initial_hash(home: Home) -> None:
    folder = home.run()
    with assembled(home, folder, steps=6) as run:
        first = run.parts.checkpoint_facts["initial_weights_sha256"]
    with assembled(home, folder, resume=True) as run:
        assert run.parts.checkpoint_facts["initial_weights_sha256"] == first
