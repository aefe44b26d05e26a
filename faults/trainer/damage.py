"""S3 and S4: damaged checkpoints, and a disk that fills up while one is written."""

import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from faults.row import Tally
from faults.stage import Stage
from faults.trainer.runs import checkpoints
from faults.trainer.runs.courses import Course
from faults.trainer.runs.run import Home, Trainer, events_of
from faults.trainer.runs.small_disk import SmallDisk, small_disk
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState

_SECTIONS = {
    "schedule": {"steps": 40},
    "checkpoint": {"every_steps": 10, "keep_last": 3, "keep_best": 0},
    "evaluation": {"every_steps": 20},
}
_STOPPED_AT = 33  # after the checkpoints of steps 10, 20 and 30
_NEWEST = 30

Damage = Callable[[list[Path]], int]
"""Damages some of the checkpoints, oldest first; returns how many of the newest."""


def _flipped(name: str, draw: random.Random, found: list[Path]) -> int:
    path = found[-1] / name
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(data))
    return 1


def _cut(name: str, draw: random.Random, found: list[Path]) -> int:
    path = found[-1] / name
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])
    return 1


def _missing(name: str, _draw: random.Random, found: list[Path]) -> int:
    (found[-1] / name).unlink()
    return 1


def _several(count: int, draw: random.Random, found: list[Path]) -> int:
    for number in range(count):
        _flipped("model.safetensors", draw, found[: len(found) - number])
    return count


def _damages() -> dict[str, Damage]:
    """Returns every damage to try, by its description."""
    draw = random.Random(0)  # noqa: S311 - where to strike
    kinds = {"a flipped bit in": _flipped, "a cut": _cut, "no": _missing}
    damages: dict[str, Damage] = {
        f"{what} {name}, {number}": partial(damage, name, draw)
        for what, damage in kinds.items()
        for name in checkpoints.FILES
        for number in range(1 if damage is _missing else 2)
    }
    damages["the newest two broken"] = partial(_several, 2, draw)
    damages["all broken"] = partial(_several, 3, draw)
    return damages


def damaged(stage: Stage) -> Tally:
    """S3: damages the newest checkpoints, in every file and every way, and resumes the run."""
    tally = Tally()
    course = Course.tried(stage, Home(stage), **_SECTIONS)
    killed = _killed_at(stage, course, _STOPPED_AT)
    damages = _damages()
    chosen = dict(list(damages.items())[:: stage.tries(1, 5)])

    def resumed(entry: tuple[str, Damage]) -> tuple[str, str]:
        what, damage = entry
        stage.say(what)
        return what, _resumed_after(stage, course, killed, damage)

    with ThreadPoolExecutor(2) as pool:
        for what, problem in pool.map(resumed, chosen.items()):
            tally.count(not problem, f"{what}: {problem}")
    tally.figure = (
        "each is found, reported and set aside as broken-step-...; the run continues from the one "
        "before (from its start if all three are broken) and ends bit-equal"
    )
    return tally


def _killed_at(stage: Stage, course: Course, step: int) -> RunFolder:
    folder = course.begin()
    trainer = Trainer(stage, course.home, folder, forked=True, faults=("waiting-steps=0.01",))
    try:
        trainer.wait_for_step(step, 60)
    finally:
        trainer.kill()
    if checkpoints.newest_step(folder) != _NEWEST:
        raise RuntimeError(f"unexpected checkpoints: {checkpoints.visible(folder)}")
    return folder


def _resumed_after(stage: Stage, course: Course, killed: RunFolder, damage: Damage) -> str:
    folder = RunFolder(killed.path.with_name(f"damaged-{stage.new_folder().name}"))
    shutil.copytree(killed.path, folder.path)
    found = checkpoints.visible(folder)
    broken = found[len(found) - damage(found) :]
    bytes_before = {path.name: _files(path) for path in broken}
    trainer = Trainer(stage, course.home, folder, ("--resume",), forked=True)
    try:
        problem = course.problem_of_end(trainer)
    finally:
        trainer.kill()
    if problem:
        return problem
    started = events_of(folder, "assembled")[-1]["step"]
    expected = checkpoints.step_of(found[-len(broken) - 1]) if len(broken) < len(found) else 0
    if started != expected:
        return f"it continued from step {started}; expected {expected}"
    said = sorted(event["path"] for event in events_of(folder, "checkpoint_set_aside"))
    if said != [f"checkpoints/broken-{path.name}" for path in broken]:
        return f"it reported {said} as set aside"
    if trainer.log.count("checkpoint_broken") != len(broken):
        return "the log does not say what is wrong"
    aside = {name: _files(folder.checkpoints_path / f"broken-{name}") for name in bytes_before}
    return "" if aside == bytes_before else "the checkpoints set aside have other bytes than before"


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


_PAGE_BYTES = 4096
# Bytes left on the full disk: none, a page, enough for some files of a checkpoint.
_ROOM = (0, _PAGE_BYTES, 64 << 10, 256 << 10, 400 << 10, 560 << 10)


def full_disk(stage: Stage) -> Tally:
    """S4: a small file system fills up while a run trains on it, and is emptied later."""
    tally = Tally()
    course = Course.tried(stage, Home(stage), **_SECTIONS)
    with small_disk(stage) as disk:
        for room in _ROOM[:: stage.tries(1, 3)]:
            stage.say(f"{room} bytes left")
            for problem in _ran_full(stage, course, disk, room):
                tally.count(not problem, f"with {room} bytes left: {problem}")
    tally.figure = (
        f"{disk.kind}: ends as interrupted (disk_full), older checkpoints intact, no partial one "
        "left; with space again it continues and ends bit-equal"
    )
    return tally


def _ran_full(stage: Stage, course: Course, disk: SmallDisk, room: int) -> tuple[str, str]:
    """Returns what goes wrong while the disk is full after step 20, and once it is emptied."""
    folder = disk.begin(course)
    trainer = disk.trainer(stage, course, folder, "waiting-steps=0.02", *disk.faults)
    try:
        trainer.wait_for_step(23, 60)
        disk.fill(room)
        exit_status = trainer.wait(60)
        ended = _ended_full(trainer, exit_status)
    finally:
        trainer.kill()
        disk.empty()
    resumed = disk.trainer(stage, course, folder, options=("--resume",))
    try:
        return ended, course.problem_of_end(resumed)
    finally:
        resumed.kill()
        shutil.rmtree(folder.path)


def _ended_full(trainer: Trainer, exit_status: int | None) -> str:
    if exit_status != 75:
        return f"it exited with status {exit_status}: {trainer.status}"
    status = trainer.status
    if status is None or (status.state, status.reason) != (RunState.INTERRUPTED, "disk_full"):
        return f"its last status is {status}"
    if not 20 <= checkpoints.newest_step(trainer.folder) == status.checkpoint_step:
        return f"it has {checkpoints.visible(trainer.folder)} but reports {status.checkpoint_step}"
    left = checkpoints.leftovers(trainer.folder)
    return checkpoints.first_problem(trainer.folder) or (
        f"{left[0]} was left behind" if left else ""
    )
