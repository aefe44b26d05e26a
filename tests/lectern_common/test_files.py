"""Files and folders are old or new and never half, even after a kill; locks; ends of files."""

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lectern_common import files
from lectern_common.errors import Misconfigured
from lectern_common.files import (
    end_of,
    fsync,
    new_folder,
    put_in_place,
    rename_durably,
    replaced_file,
    require_locks,
    take_lock,
    write_atomic,
)
from tests.support.no_locks import refuse_locks

# What changes the disk, or waits for it.
_STEPS = (
    *((os, name) for name in ("fsync", "mkdir")),
    *((Path, name) for name in ("rename", "replace", "unlink", "write_bytes")),
    (shutil, "rmtree"),
)


def killed_before_each_step(
    work: Callable[[Path], None], fresh: Callable[[], Path], look: Callable[[Path], object]
) -> list[object]:
    """Returns what `look` sees if `work` is killed before each step, and last if it is not."""
    seen: list[object] = []
    status = 9
    while status:
        folder = fresh()
        child = os.fork()
        if child == 0:
            try:
                _end_after(len(seen))
                work(folder)
                os._exit(0)
            finally:  # an error: the child must not go on with the tests
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, 9)
        seen.append(look(folder))
    return seen


def _end_after(steps: int) -> None:
    """Makes this process exit without any clean-up instead of taking one more step."""
    left = steps

    def step(call: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **named: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(9)
            return call(*arguments, **named)

        return counted

    for owner, name in _STEPS:
        setattr(owner, name, step(getattr(owner, name)))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files and folders that are fsynced and renamed, in order."""
    made: list[str] = []

    def synced(path: Path) -> None:
        made.append(f"fsync {path.name}")
        fsync(path)

    def renaming(name: str) -> Callable[[Path, Path], Path]:
        real = getattr(Path, name)

        def renamed(path: Path, target: Path) -> Path:
            made.append(f"rename to {target.name}")
            moved: Path = real(path, target)
            return moved

        return renamed

    monkeypatch.setattr(files, "fsync", synced)
    for name in ("rename", "replace"):
        monkeypatch.setattr(Path, name, renaming(name))
    return made


def test_an_atomic_write_replaces_and_leaves_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_atomic(target, b"one")
    write_atomic(target, b"two")
    assert target.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["file"]


def test_an_atomic_write_that_fails_leaves_no_temporary(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path / "folder", b"one")
    assert os.listdir(tmp_path) == ["folder"]


def test_an_error_in_the_middle_of_a_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_atomic(target, b"old")
    with pytest.raises(OSError, match="full"), replaced_file(target) as hidden:
        hidden.write_bytes(b"ne")
        raise OSError(errno.ENOSPC, "full")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_is_fsynced_before_the_rename_and_its_folder_after(
    tmp_path: Path, calls: list[str]
) -> None:
    write_atomic(tmp_path / "file", b"one")
    hidden = f".file.{os.getpid()}.tmp"
    assert calls == [f"fsync {hidden}", "rename to file", f"fsync {tmp_path.name}"]
    calls.clear()
    write_atomic(tmp_path / "file", b"two", durable=False)
    assert calls == ["rename to file"]


def test_a_folder_is_fsynced_before_the_rename_and_its_parent_after(
    tmp_path: Path, calls: list[str]
) -> None:
    with new_folder(tmp_path / "it", tmp_path / ".new") as hidden:
        (hidden / "inner").mkdir()
        (hidden / "inner" / "file").touch()
    before = calls[: calls.index("rename to it")]
    assert sorted(before) == ["fsync .new", "fsync file", "fsync inner"]
    assert calls[len(before) :] == ["rename to it", f"fsync {tmp_path.name}"]
    calls.clear()
    with new_folder(tmp_path / "other", tmp_path / ".new", durable=False) as hidden:
        (hidden / "file").touch()
    assert calls == ["rename to other"]
    calls.clear()
    rename_durably(tmp_path / "other", tmp_path / "last")
    assert calls == ["rename to last", f"fsync {tmp_path.name}"]


def test_a_kill_at_any_step_leaves_the_old_file_or_the_new(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    def fresh() -> Path:
        folder = tmp_path_factory.mktemp("file")
        (folder / "file").write_bytes(b"old")
        return folder

    def work(folder: Path) -> None:
        write_atomic(folder / "file", b"new")

    seen = killed_before_each_step(work, fresh, lambda folder: (folder / "file").read_bytes())
    # Written, fsynced, replaced, the folder fsynced.
    assert seen == [b"old"] * 3 + [b"new"] * 2


def test_a_kill_at_any_step_leaves_a_whole_folder(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    def fresh() -> Path:
        folder = tmp_path_factory.mktemp("folder")
        (folder / "it").mkdir()
        for name in ("one", "two"):
            (folder / "it" / name).write_bytes(b"old")
        return folder

    def work(folder: Path) -> None:
        with new_folder(folder / "it", folder / ".new", aside=folder / ".old") as hidden:
            (hidden / "one").write_bytes(b"new")
            (hidden / "two").write_bytes(b"new")

    def look(folder: Path) -> str:
        there = folder / "it"
        where = "" if there.exists() else " aside"
        contents = [
            (there if there.exists() else folder / ".old").joinpath(name).read_bytes()
            for name in ("one", "two")
        ]
        assert contents[0] == contents[1]
        return contents[0].decode() + where

    seen = killed_before_each_step(work, fresh, look)
    steps = [step for index, step in enumerate(seen) if index == 0 or step != seen[index - 1]]
    assert steps == ["old", "old aside", "new"]
    assert seen.count("old aside") == 1


def test_a_new_folder_begins_empty_and_a_failed_one_leaves_nothing(tmp_path: Path) -> None:
    hidden, target = tmp_path / ".new", tmp_path / "it"
    hidden.mkdir()
    (hidden / "of a killed one").touch()
    with pytest.raises(ValueError, match="no"), new_folder(target, hidden) as folder:
        assert os.listdir(folder) == []
        (folder / "half").touch()
        raise ValueError("no")
    assert os.listdir(tmp_path) == []


def test_an_existing_folder_is_replaced_only_if_asked(tmp_path: Path) -> None:
    target, aside = tmp_path / "it", tmp_path / ".old"
    for content in ("old", "new"):
        folder = tmp_path / content
        folder.mkdir()
        (folder / content).touch()
    put_in_place(tmp_path / "old", target)
    with pytest.raises(OSError, match="not empty"):
        put_in_place(tmp_path / "new", target)
    assert os.listdir(target) == ["old"]
    aside.mkdir()  # of one that was killed
    (aside / "older").touch()
    put_in_place(tmp_path / "new", target, aside=aside)
    assert os.listdir(target) == ["new"]
    assert os.listdir(tmp_path) == ["it"]


def test_the_old_folder_comes_back_if_the_new_one_cannot_be_put_in_place(tmp_path: Path) -> None:
    target = tmp_path / "it"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / "none", target, aside=tmp_path / ".old", durable=False)
    assert os.listdir(target) == ["old"]
    assert os.listdir(tmp_path) == ["it"]


def test_a_lock_is_refused_while_another_holds_it_and_ends_with_its_descriptor(
    tmp_path: Path,
) -> None:
    path = tmp_path / "lock"
    held = take_lock(path)
    with pytest.raises(BlockingIOError):
        take_lock(path)
    os.close(held)
    os.close(take_lock(path))


def test_a_refused_lock_leaves_no_descriptor_open(tmp_path: Path) -> None:
    held = take_lock(tmp_path / "lock")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(BlockingIOError):
            take_lock(tmp_path / "lock")
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(held)


def test_waiting_for_a_lock_ends_after_the_given_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    held = take_lock(tmp_path / "lock")
    with pytest.raises(BlockingIOError):
        take_lock(tmp_path / "lock", patience_seconds=3.0)
    assert now == pytest.approx(3.0, abs=0.1)
    monkeypatch.setattr(time, "sleep", lambda _seconds: os.close(held))
    os.close(take_lock(tmp_path / "lock", patience_seconds=3.0))


def test_a_lock_file_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        take_lock(tmp_path / "gone" / "lock")


@pytest.mark.parametrize(
    "number", [errno.ENOTSUP, errno.ENOLCK, errno.EINVAL, errno.ENOSYS, errno.EIO, errno.EPERM]
)
def test_a_file_system_without_locks_is_named_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse_locks(monkeypatch, number)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Misconfigured) as caught:
        take_lock(tmp_path / "lock", patience_seconds=60)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path} is on a file system without file locks (")
    assert "folder on another file system, or set LECTERN_LOCKS to a folder" in said
    with pytest.raises(Misconfigured):
        require_locks(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_folder_for_locks_stands_for_one_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks, work = tmp_path / "a/locks", tmp_path / "work"
    work.mkdir()
    (tmp_path / "link").symlink_to(work)
    refuse_locks(monkeypatch, errno.ENOLCK, but=locks)
    monkeypatch.setenv("LECTERN_LOCKS", str(locks))
    held = take_lock(work / "lock")
    with pytest.raises(BlockingIOError):  # by another name of the same folder
        take_lock(tmp_path / "link/lock")
    os.close(take_lock(work / "other"))
    require_locks(work)
    os.close(held)
    os.close(take_lock(work / "lock"))
    assert os.listdir(work) == [] and len(os.listdir(locks)) == 2
    with pytest.raises(FileNotFoundError):
        take_lock(tmp_path / "gone/lock")
    locks.rename(tmp_path / "moved")
    locks.write_text("a file")
    with pytest.raises(Misconfigured, match=r"cannot use .*locks for locks: .*LECTERN_LOCKS"):
        take_lock(work / "lock")


def test_a_folder_is_probed_for_locks_without_a_trace(tmp_path: Path) -> None:
    require_locks(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("at_most", "first", "expected"),
    [
        (100, 0, (b"0123456789", False)),
        (10, 0, (b"0123456789", False)),
        (9, 0, (b"123456789", True)),
        (3, 0, (b"789", True)),
        (3, 8, (b"89", False)),
        (3, 7, (b"789", False)),
        (3, 6, (b"789", True)),
        (3, 20, (b"", False)),
        (0, 0, (b"", True)),
    ],
)
def test_the_end_of_a_file(
    tmp_path: Path, at_most: int, first: int, expected: tuple[bytes, bool]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    assert end_of(path, at_most, first) == expected


def test_the_end_of_a_missing_or_empty_file_is_empty(tmp_path: Path) -> None:
    assert end_of(tmp_path / "none", 5) == (b"", False)
    (tmp_path / "empty").touch()
    assert end_of(tmp_path / "empty", 5) == (b"", False)


def test_the_end_of_a_file_may_begin_within_a_character(tmp_path: Path) -> None:
    """It returns bytes, so that the callers decide what half a character becomes."""
    path = tmp_path / "file"
    path.write_bytes("\N{EURO SIGN}1".encode())
    data, is_cut = end_of(path, 2)
    assert (data.decode(errors="replace"), is_cut) == ("\N{REPLACEMENT CHARACTER}1", True)
