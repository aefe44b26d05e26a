"""A run keeps what its teacher sends (`teacher.record_to`), and others learn from it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from lectern_common.checks.preflight import startable
from lectern_common.errors import InvalidSpec
from lectern_common.run.status import RunState
from lectern_common.teacher.record.manifest import read_record_manifest
from lectern_common.teacher.record.reader import require_intact_record
from student_trainer.record.kept import KeepingTeacher
from student_trainer.stop import Stop
from student_trainer.targets import for_new_texts
from student_trainer.teacher.local import FixtureTeacher
from tests.student_trainer.record.test_recorded_runs import (
    AT_TWO,
    bytes_of,
    exported,
    from_record,
    made,
    online,
)
from tests.support.models import write_tiny_model
from tests.support.servers import TeacherThread, teacher_of
from tests.support.training.runs import VOCAB_SIZE, Home, curve, events_of, status_of, trained

# Rows of the dataset `text` with a tenth held out: 224 of 4 a step are seen in 56 steps.
AN_EPOCH: dict[str, Any] = {
    "schedule": {"steps": 56, "warmup_steps": 2},
    "evaluation": {"every_steps": 30},
    "checkpoint": {"every_steps": 10},
}
KINDS: list[dict[str, Any]] = [
    {},
    {"representation": "top_k", "top_k": 5},
    {"representation": "sampled", "num_draws": 9},
]


def test_answers_about_new_texts_are_not_kept():
    """They are of texts that the student wrote, and a record is of the run's data."""
    teacher = FixtureTeacher(VOCAB_SIZE)
    assert for_new_texts(KeepingTeacher(teacher, cast(Any, None))) is teacher


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TeacherThread]:
    folder = tmp_path_factory.mktemp("served")
    model = write_tiny_model(folder / "teacher", vocab_size=VOCAB_SIZE, hidden=32, seed=1)
    with teacher_of(model) as teacher:
        yield teacher


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def keeping(served: TeacherThread, name: str = "kept", **teacher: Any) -> dict[str, Any]:
    return online(served, record_to=name, **teacher)


def stopping_at(step: int) -> Stop:
    """A stop in the middle of a run: it is looked at more than once a step."""

    class Soon(Stop):
        looks = 0

        def check(self) -> None:
            self.looks += 1
            if self.looks > 3 * step:
                self.request()
            super().check()

    return Soon()


@pytest.mark.parametrize("teacher", KINDS, ids=["hidden", "top_k", "sampled"])
def test_a_run_of_an_epoch_keeps_what_precompute_records(home, served, teacher):
    folder = home.run(**AN_EPOCH, **keeping(served, **teacher))
    assert trained(home, folder) == 0
    [begun] = events_of(folder, "record_begun")
    assert begun["message"].startswith("keeps what the teacher sends in the record kept; the rec")
    [ended] = events_of(folder, "record_made")
    assert ended["message"].startswith("made the record kept of what the run received: ")
    made(home, home.spec("recording", **online(served, **teacher)), "whole")
    kept, whole = (bytes_of(home.roots.data / name) for name in ("kept", "whole"))
    if teacher.get("representation") != "sampled":
        assert kept == whole
        return
    # The draws of a run are those of its steps; all else is as precompute has it.
    draws = {name for name in kept if kept[name] != whole[name]}
    assert draws <= {"training-0/rows.bin", "training-0/index.bin", "manifest.json"}
    manifests = [read_record_manifest(home.roots.data / name) for name in ("kept", "whole")]
    assert manifests[0].parts == manifests[1].parts


@pytest.mark.parametrize("teacher", KINDS[:2], ids=["hidden", "top_k"])
def test_the_same_run_learns_the_same_from_what_it_kept(home, served, teacher):
    """Six steps, a part of an epoch: the record has the rows that they saw."""
    first = home.run(**keeping(served, **teacher))
    assert trained(home, first) == 0
    [ended] = events_of(first, "record_made")
    assert ended["message"].endswith("; it has seen 24 of its 224 training rows")
    again = home.run(**from_record("kept", **teacher))
    assert trained(home, again) == 0, status_of(again).message
    if not teacher:
        assert curve(again, "loss/kd") == curve(first, "loss/kd")
        assert exported(again) == exported(first)
    np.testing.assert_allclose(curve(again, "val/kl"), curve(first, "val/kl"), rtol=1e-3)
    longer = home.run(schedule={"steps": 9}, **from_record("kept", **teacher))
    assert trained(home, longer) == 1
    assert "is not in the record kept" in str(status_of(longer).message)
    assert "a run of fewer steps" in str(status_of(longer).message)
    assert status_of(longer).step == 0


def test_draws_are_kept_as_the_run_received_them(home, served):
    sampled = KINDS[2]
    first = home.run(**keeping(served, **sampled))
    assert trained(home, first) == 0
    again = home.run(**from_record("kept", **sampled))
    assert trained(home, again) == 0
    np.testing.assert_allclose(curve(again, "loss/kd"), curve(first, "loss/kd"), rtol=2e-3)
    np.testing.assert_allclose(curve(again, "val/kl"), curve(first, "val/kl"), rtol=2e-3)


def test_keeping_changes_nothing_of_the_run(home, served):
    plain, kept = home.run(**online(served)), home.run(**keeping(served))
    assert trained(home, plain) == trained(home, kept) == 0
    assert exported(plain) == exported(kept)


def test_what_a_run_keeps_cannot_be_opened_before_it_has_succeeded(home, served):
    folder = home.run(**AN_EPOCH, **keeping(served))
    for step in (7, 23, 40):
        trained(home, folder, resume=True, stop=stopping_at(step))
        assert status_of(folder).state is RunState.STOPPED
        assert not (home.roots.data / "kept").exists()
        with pytest.raises(InvalidSpec, match="no record 'kept'"):
            startable(home.spec("early", **from_record("kept")), home.roots)
    assert trained(home, folder, resume=True) == 0
    made(home, home.spec("recording", **online(served)), "whole")
    assert bytes_of(home.roots.data / "kept") == bytes_of(home.roots.data / "whole")
    assert not (home.roots.data / ".kept.recording").exists()


def test_rows_that_a_killed_run_had_half_written_are_asked_for_again(home, served):
    folder = home.run(**AN_EPOCH, **keeping(served))
    trained(home, folder, stop=stopping_at(30))
    received = home.roots.data / ".kept.recording" / "received" / "0"
    for path in (received / "training" / "rows.bin", received / "training.entries"):
        path.write_bytes(path.read_bytes() + b"half")
    assert trained(home, folder, resume=True) == 0
    made(home, home.spec("recording", **online(served)), "whole")
    assert bytes_of(home.roots.data / "kept") == bytes_of(home.roots.data / "whole")


def test_an_end_that_was_cut_short_begins_the_record_anew(home, served, monkeypatch):
    folder = home.run(**AN_EPOCH, **keeping(served))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("student_trainer.record.writer.RecordWriter.finish", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(home, folder)
    assert not (home.roots.data / "kept").exists()
    assert trained(home, folder, resume=True) == 0
    require_intact_record(home.roots.data / "kept", read_record_manifest(home.roots.data / "kept"))


def test_a_run_that_goes_on_after_its_record_is_made_adds_nothing(home, served):
    folder = home.run(**keeping(served))
    assert trained(home, folder) == 0
    before = bytes_of(home.roots.data / "kept")
    folder.write_spec(home.spec(folder.run_id, schedule={"steps": 9}, **keeping(served)))
    assert trained(home, folder, resume=True) == 0
    assert bytes_of(home.roots.data / "kept") == before
    [said] = events_of(folder, "record_is_made")
    assert said["message"] == "the record kept is made; nothing is added to it"


def test_two_runs_do_not_make_one_record(home, served):
    first = home.run(**AN_EPOCH, **keeping(served))
    trained(home, first, stop=stopping_at(20))
    second = home.run(**keeping(served))
    assert trained(home, second) == 1
    assert "was begun with another run" in str(status_of(second).message)
    assert "choose another teacher.record_to" in str(status_of(second).message)
    assert trained(home, first, resume=True) == 0
    with pytest.raises(InvalidSpec, match="record_to: 'kept' is there already"):
        startable(home.spec("third", **keeping(served)), home.roots)
    third = home.run(**keeping(served))
    assert trained(home, third) == 1
    assert "is there already" in str(status_of(third).message)
    with pytest.raises(InvalidSpec, match="record_to: 'text' is there already"):
        startable(home.spec("data", **keeping(served, "text")), home.roots)


def test_a_run_may_go_on_without_keeping(home, served):
    folder = home.run(**AN_EPOCH, **keeping(served))
    trained(home, folder, stop=stopping_at(20))
    folder.write_spec(home.spec(folder.run_id, **AN_EPOCH, **online(served)))
    assert trained(home, folder, resume=True) == 0
    assert not (home.roots.data / "kept").exists()


def test_a_run_that_receives_nothing_more_makes_no_record(home, served):
    folder = home.run(**online(served))
    assert trained(home, folder) == 0
    folder.write_spec(home.spec(folder.run_id, **keeping(served)))
    assert trained(home, folder, resume=True) == 0
    [said] = events_of(folder, "record_not_made")
    assert said["message"] == "there is no record kept: the run received nothing"
    assert not (home.roots.data / "kept").exists()
    assert not (home.roots.data / ".kept.recording").exists()


def test_the_disk_is_too_small_for_what_a_run_would_keep(home, served, monkeypatch):
    usage = shutil.disk_usage(home.path)._replace(free=20_000)
    monkeypatch.setattr("student_trainer.record.facts.shutil.disk_usage", lambda _: usage)
    folder = home.run(**keeping(served))
    assert trained(home, folder) == 75
    assert status_of(folder).reason == "disk_full"
    assert "the record takes about" in str(status_of(folder).message)


def test_a_disk_that_fills_up_ends_the_run_so_that_it_can_go_on(home, served, monkeypatch):
    from student_trainer.record.writer import PartWriter

    folder, add = home.run(**AN_EPOCH, **keeping(served)), PartWriter.add
    left = 40

    def full(self: PartWriter, *arguments: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        add(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(PartWriter, "add", full)
        assert trained(home, folder) == 75
    assert status_of(folder).reason == "disk_full"
    assert "then resume the run" in str(status_of(folder).message)
    assert trained(home, folder, resume=True) == 0
    made(home, home.spec("recording", **online(served)), "whole")
    assert bytes_of(home.roots.data / "kept") == bytes_of(home.roots.data / "whole")


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"teacher": {"record": "a", "record_to": "b"}}, "record_to has no effect with record"),
        ({"teacher": {"record_to": "../b"}}, "relative path"),
        ({"teacher": {"record_to": "b", "representation": "dense"}}, "dense is never recorded"),
        (
            {"teacher": {"record_to": "b"}, "data": {"kind": "synthetic", "path": None}},
            "teacher.record_to needs a dataset",
        ),
        (
            {"teacher": {"record": "b"}, "data": {"kind": "synthetic", "path": None}},
            "teacher.record needs a dataset",
        ),
    ],
)
def test_a_record_that_no_run_could_make_is_refused(home, sections, said):
    if "data" in sections:
        sections["data"] |= {"validation_fraction": None}
    with pytest.raises(InvalidSpec, match=said):
        home.spec("refused", objective=AT_TWO, **sections)


def test_probes_and_samples_are_no_part_of_the_record(home, served):
    """What is asked about other rows than those of the data is not in it."""
    folder = home.run(**AN_EPOCH, **keeping(served))
    assert trained(home, folder) == 0
    [part] = read_record_manifest(home.roots.data / "kept").parts
    events = [json.loads(line) for line in folder.events_path.read_text().splitlines()]
    assert any(event["kind"] == "assembled" and event["probe"] for event in events)
    assert part.rows == 8 * part.sequences
