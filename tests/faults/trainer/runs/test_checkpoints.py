"""How faults/ inspects checkpoints."""

import hashlib
import json
from pathlib import Path

import pytest

from faults.trainer.runs import checkpoints
from lectern_common.run.folder import RunFolder


def write_checkpoint(folder: RunFolder, step: int) -> Path:
    path = folder.checkpoints_path / f"step-{step:08d}"
    path.mkdir(parents=True)
    contents = {name: f"{name} of {step}".encode() for name in checkpoints.FILES[:2]}
    contents["state.json"] = json.dumps({"step": step}).encode()
    files = {}
    for name, data in contents.items():
        (path / name).write_bytes(data)
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "manifest.json").write_text(json.dumps({"files": files}))
    return path


def test_complete_checkpoints_are_found_and_partial_ones_are_leftovers(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert (checkpoints.newest_step(folder), checkpoints.leftovers(folder)) == (0, [])
    write_checkpoint(folder, 5)
    write_checkpoint(folder, 10)
    (folder.checkpoints_path / ".writing-step-00000015").mkdir()
    (folder.checkpoints_path / "broken-step-00000001").mkdir()
    assert checkpoints.newest_step(folder) == 10
    assert checkpoints.first_problem(folder) == ""
    assert checkpoints.leftovers(folder) == [".writing-step-00000015"]


@pytest.mark.parametrize("name", checkpoints.FILES)
@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_every_damage_is_found(tmp_path: Path, name: str, damage: str) -> None:
    folder = RunFolder(tmp_path)
    write_checkpoint(folder, 5)
    path = write_checkpoint(folder, 10) / name
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if damage == "flipped" else data[:-1])
    assert "step-00000010" in checkpoints.first_problem(folder)


def test_a_checkpoint_of_another_step_is_found(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_checkpoint(folder, 5).rename(folder.checkpoints_path / "step-00000006")
    assert "another step" in checkpoints.first_problem(folder)
