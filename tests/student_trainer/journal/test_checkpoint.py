"""Checkpoints on disk: written completely, verified, kept or deleted, and set aside if broken."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from lectern_common.errors import CorruptData, DiskFull
from student_trainer.journal.checkpoint import CheckpointStore, read_checkpoint

MODEL = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([1.5])}
OPTIMIZER = {"weight/exp_avg": torch.ones(2, 3), "weight/step": torch.tensor(4.0)}


def store(folder: Path, **settings: Any) -> CheckpointStore:
    return CheckpointStore(folder, **{"keep_last": 2, "keep_best": 0, **settings})


def save(checkpoints: CheckpointStore, step: int, val_loss: float | None = None) -> Path:
    return checkpoints.save(step, MODEL, OPTIMIZER, {"val_loss": val_loss, "note": step * 10})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    checkpoints = store(tmp_path / "checkpoints")
    assert checkpoints.newest() is None
    path = save(checkpoints, 500)
    assert path == tmp_path / "checkpoints" / "step-00000500"
    assert names(path) == [
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    found = checkpoints.newest()
    assert found is not None
    assert (found.step, found.path) == (500, path)
    assert found.state["note"] == 5000
    for name, tensor in found.model_tensors().items():
        assert torch.equal(tensor, MODEL[name])
    assert found.optimizer_tensors().keys() == OPTIMIZER.keys()


def test_the_state_holds_the_hash_of_the_optimizer_state(tmp_path: Path) -> None:
    import hashlib

    path = save(store(tmp_path), 1)
    state = json.loads((path / "state.json").read_text())
    data = (path / "optimizer.safetensors").read_bytes()
    assert state["optimizer_state_sha"] == hashlib.sha256(data).hexdigest()


def test_equal_states_give_equal_bytes(tmp_path: Path) -> None:
    one, other = (save(store(tmp_path / name), 7) for name in ("a", "b"))
    for name in names(one):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_the_newest_ones_are_kept(tmp_path: Path) -> None:
    checkpoints = store(tmp_path, keep_last=2)
    for step in (1, 2, 3, 4):
        save(checkpoints, step)
    assert checkpoints.steps() == [3, 4]
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


def test_the_best_are_kept_beside_the_newest(tmp_path: Path) -> None:
    checkpoints = store(tmp_path, keep_last=1, keep_best=2)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 2.5), (6, None)):
        save(checkpoints, step, loss)
    assert checkpoints.steps() == [2, 3, 6]


def test_the_remains_of_a_killed_save_are_deleted_and_never_read(tmp_path: Path) -> None:
    checkpoints = store(tmp_path)
    save(checkpoints, 1)
    half = tmp_path / ".writing-step-00000002"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 1
    checkpoints.sweep()
    assert names(tmp_path) == ["step-00000001"]
    store(tmp_path / "nowhere").sweep()


def test_a_half_written_folder_does_not_hinder_the_next_save(tmp_path: Path) -> None:
    half = tmp_path / ".writing-step-00000002"
    half.mkdir()
    (half / "garbage").write_bytes(b"half")
    save(store(tmp_path), 2)
    assert names(tmp_path) == ["step-00000002"]


def damage(path: Path, kind: str) -> None:
    model = path / "model.safetensors"
    if kind == "flip":
        data = bytearray(model.read_bytes())
        data[-2] ^= 1
        model.write_bytes(bytes(data))
    elif kind == "truncate":
        model.write_bytes(model.read_bytes()[:-4])
    elif kind == "missing":
        (path / "optimizer.safetensors").unlink()
    elif kind == "state":
        (path / "state.json").write_text("{")
    elif kind == "manifest":
        (path / "manifest.json").unlink()
    else:
        (path / "manifest.json").write_text('{"files": {}}')


@pytest.mark.parametrize("kind", ["flip", "truncate", "missing", "state", "manifest", "empty"])
def test_a_broken_newest_is_set_aside_and_the_one_before_is_used(tmp_path: Path, kind: str) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    checkpoints = store(tmp_path, on_event=lambda name, details: events.append((name, details)))
    save(checkpoints, 1)
    damage(save(checkpoints, 2), kind)
    with pytest.raises(CorruptData):
        read_checkpoint(tmp_path / "step-00000002")
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 1
    assert names(tmp_path) == ["broken-step-00000002", "step-00000001"]
    assert events[-1] == (
        "checkpoint_set_aside",
        {"path": "checkpoints/broken-step-00000002"},
    )


def test_several_broken_checkpoints_are_all_set_aside(tmp_path: Path) -> None:
    checkpoints = store(tmp_path)
    for _ in range(2):
        damage(save(checkpoints, 2), "flip")
        assert checkpoints.newest() is None
    assert names(tmp_path) == ["broken-step-00000002", "broken-step-00000002.2"]


def test_saving_over_an_intact_checkpoint_changes_nothing(tmp_path: Path) -> None:
    checkpoints = store(tmp_path)
    path = save(checkpoints, 3)
    before = (path / "manifest.json").stat().st_mtime_ns
    assert save(checkpoints, 3) == path
    assert (path / "manifest.json").stat().st_mtime_ns == before


def test_saving_over_a_broken_checkpoint_sets_it_aside(tmp_path: Path) -> None:
    checkpoints = store(tmp_path)
    damage(save(checkpoints, 3), "flip")
    save(checkpoints, 3)
    assert read_checkpoint(tmp_path / "step-00000003").step == 3
    assert names(tmp_path) == ["broken-step-00000003", "step-00000003"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("file_of_save", [1, 2])
def test_a_full_disk_keeps_old_checkpoints_and_leaves_nothing_of_the_new_one(
    tmp_path: Path, number: int, file_of_save: int
) -> None:
    calls = 0

    def filling_up(tensors: dict[str, Tensor], path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 2 + file_of_save:
            path.write_bytes(b"half")
            raise OSError(number, os.strerror(number))
        safetensors.torch.save_file(tensors, path)

    checkpoints = store(tmp_path, save_tensors=filling_up)
    save(checkpoints, 1)
    with pytest.raises(DiskFull, match="resume the run from its last checkpoint"):
        save(checkpoints, 2)
    assert names(tmp_path) == ["step-00000001"]
    assert read_checkpoint(tmp_path / "step-00000001").step == 1


ON_A_SMALL_DISK = """
import sys
from pathlib import Path
import torch
from lectern_common.errors import DiskFull
from student_trainer.journal.checkpoint import CheckpointStore, read_checkpoint
folder = Path(sys.argv[1])
store = CheckpointStore(folder, keep_last=5, keep_best=0)
step = 0
try:
    while step < 50:
        store.save(step + 1, {"w": torch.zeros(50_000)}, {}, {"val_loss": None})
        step += 1
except DiskFull as error:
    assert step >= 2, step
    assert store.steps() == list(range(1, step + 1))
    assert [read_checkpoint(path).step for path in sorted(folder.iterdir())] == store.steps()
    print("full after", step)
"""


def test_a_disk_that_is_actually_full_is_recognised(tmp_path: Path) -> None:
    """On a tmpfs of 1 MiB, if this user may mount one in a namespace."""
    script = f"mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec {sys.executable} -c '$CODE' "
    command = script.replace("'$CODE'", '"$CODE"') + str(tmp_path)
    probe = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs tmpfs {tmp_path}"], capture_output=True
    )
    if probe.returncode:
        pytest.skip("no mount namespaces here")
    environment = {**os.environ, "CODE": ON_A_SMALL_DISK, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "full after" in done.stdout


def test_other_errors_of_a_save_are_not_mistaken_for_a_full_disk(tmp_path: Path) -> None:
    def broken(tensors: dict[str, Tensor], path: Path) -> None:
        raise OSError(errno.EACCES, "no")

    with pytest.raises(PermissionError):
        save(store(tmp_path, save_tensors=broken), 1)
    assert names(tmp_path) == []
