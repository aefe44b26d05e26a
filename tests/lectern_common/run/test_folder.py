"""The run folder: atomic creation, status and lock."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lectern_common.errors import Conflict, CorruptData, NotFound
from lectern_common.roots import Roots
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState, Status
from lectern_common.spec.load import parse_spec
from lectern_common.teacher.identity import TeacherIdentity

SPEC = parse_spec(
    {"name": "a", "teacher": {}, "student": {"init": "small"}, "data": {"path": "text"}}
)
STATUS = Status("a-1", RunState.RUNNING, 1.0, 2.0, 3, 4.0, step=5, latest={"loss/val": None})


def test_a_folder_is_created_once(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "a-1", SPEC)
    assert folder.read_spec() == SPEC
    assert folder.read_status() is None
    with pytest.raises(Conflict, match="a-1 exists"):
        RunFolder.create(tmp_path, "a-1", SPEC)


def test_the_teacher_that_the_run_was_accepted_with_is_kept(tmp_path: Path) -> None:
    teacher = TeacherIdentity("coder", "ab" * 32)
    assert RunFolder.create(tmp_path, "a-1", SPEC, teacher).read_teacher() == teacher
    assert RunFolder.create(tmp_path, "a-2", SPEC).read_teacher() is None
    (tmp_path / "a-1/teacher.json").write_text('{"model_id": "coder"}')
    with pytest.raises(CorruptData, match="does not name a teacher"):
        RunFolder(tmp_path / "a-1").read_teacher()


def test_a_run_packs_chats_as_its_newest_checkpoint_does(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "a-1", SPEC)
    assert folder.packs_chats  # nothing is trained, so a resume begins anew

    def write(step: int, state: str) -> None:
        path = folder.checkpoints_path / f"step-{step:08d}"
        path.mkdir(parents=True)
        (path / "state.json").write_text(state)

    write(3, "{")
    assert folder.packs_chats  # the trainer sets a broken checkpoint aside
    write(5, '{"step": 5}')
    assert not folder.packs_chats  # of a release that had no such thing
    write(7, '{"step": 7, "packs_chats": true}')
    assert folder.packs_chats
    write(8, '{"step": 8, "packs_chats": false}')
    write(9, "[]")
    (folder.checkpoints_path / "step-00000010").mkdir()
    assert not folder.packs_chats


def test_a_folder_whose_spec_cannot_be_written_does_not_appear(tmp_path: Path) -> None:
    class Broken:
        def model_dump(self, **_: object) -> dict[str, object]:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        RunFolder.create(tmp_path, "a-1", Broken())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_status_reads_back_equal(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "a-1", SPEC)
    folder.write_status(STATUS)
    assert folder.read_status() == STATUS


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 1}', '{"version": 99}', ""])
def test_a_status_of_another_shape_is_corrupt(tmp_path: Path, text: str) -> None:
    folder = RunFolder.create(tmp_path, "a-1", SPEC)
    folder.status_path.write_text(text)
    with pytest.raises(CorruptData):
        folder.read_status()


def test_the_lock_is_held_by_one_process_and_ends_with_it(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "a-1", SPEC)
    program = (
        "import sys; from pathlib import Path; from lectern_common.run.folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).locked():\n print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert folder.is_locked()
        with pytest.raises(Conflict, match="being trained"), folder.locked():
            pass
        holder.kill()
    assert not folder.is_locked()


def test_locking_waits_while_the_holder_is_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder.create(tmp_path, "a-1", SPEC)
    with contextlib.ExitStack() as holder:
        holder.enter_context(folder.locked())
        monkeypatch.setattr(time, "sleep", lambda _seconds: holder.close())
        with folder.locked(patience_seconds=60):
            assert folder.is_locked()


def test_locking_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound), RunFolder(tmp_path / "gone").locked():
        pass


def test_roots_follow_home_then_environment(tmp_path: Path) -> None:
    env = {"LECTERN_HOME": str(tmp_path), "LECTERN_DATA_ROOT": str(tmp_path / "elsewhere")}
    roots = Roots.of_home(env=env)
    assert roots.data == tmp_path / "elsewhere"
    assert roots.runs == tmp_path / "runs"
    assert Roots.of_home(env=roots.environment()) == roots
    assert Roots.of_home(tmp_path / "explicit", env=env).data == tmp_path / "explicit" / "data"
