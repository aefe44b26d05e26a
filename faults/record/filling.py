"""R2: the disk of a record fills up: before it is begun, in the middle, while a run keeps it."""

import shutil

from faults.processes import Launched
from faults.record.recordings import Recorder, Records, difference, hashes_of, served
from faults.row import Tally
from faults.stage import Stage
from faults.trainer.runs.run import Home
from faults.trainer.runs.small_disk import SmallDisk, small_disk

# Bytes left on the full disk: none, a page, some rows.
_ROOM = (0, 4096, 64 << 10)
_DISK_MIB = 12  # a run keeps what it receives twice, beside its checkpoints


def full_disk(stage: Stage) -> Tally:
    """R2: a small file system fills up at three times, and is emptied later."""
    tally = Tally()
    home = Home(stage)
    with served(stage, home) as server, small_disk(stage, _DISK_MIB) as disk:
        records = Records(stage, home, disk.folder / "home", disk.fork_server)
        whole = hashes_of(records.made(server.address, "whole"))
        shutil.rmtree(records.data / "whole")
        for number, room in enumerate(_ROOM[:: stage.tries(1, 3)]):
            for when in ("before", "while"):
                stage.say(f"{when} it is made, {room} bytes left")
                name = f"{when}-{number}"
                recorder = records.start(records.task(server.address, name), *_injected(disk))
                problem = _recorded(records, disk, recorder, room, is_late=when == "while")
                problem = problem or difference(records.data / name, whole)
                shutil.rmtree(records.data / name, ignore_errors=True)
                tally.count(not problem, f"full {when} it is made, with {room} left: {problem}")
            stage.say(f"while a run keeps it, {room} bytes left")
            name = f"kept-{number}"
            problem = _kept(records, disk, server.address, name, room)
            problem = problem or difference(records.data / name, whole)
            shutil.rmtree(records.data / name, ignore_errors=True)
            tally.count(not problem, f"full while a run keeps it, with {room} left: {problem}")
    tally.figure = (
        f"{disk.kind}: ends as interrupted (disk_full), no half record has a name; with space "
        "again it goes on to the same bytes"
    )
    return tally


def _injected(disk: SmallDisk) -> tuple[str, ...]:
    return () if disk.is_real else ("full-record=40",)


def _recorded(
    records: Records, disk: SmallDisk, recorder: Recorder, room: int, *, is_late: bool
) -> str:
    """Returns what goes wrong with a recording on a disk that fills up, and is emptied."""
    try:
        if is_late:
            recorder.wait_for_rows(1)
        disk.fill(room)
        code = recorder.wait(120)
        problem = _ended_full(recorder, code, recorder.said)
    finally:
        recorder.kill()
        disk.empty()
    if (records.data / recorder.task.read_asked()[1]["output"]).exists():
        return "a half-written record has a name"
    again = records.start(recorder.task)
    try:
        return problem or again.end()
    finally:
        again.kill()


def _kept(records: Records, disk: SmallDisk, address: str, name: str, room: int) -> str:
    """Returns what goes wrong with a run that keeps its answers on such a disk."""
    folder = records.run({"address": address, "record_to": name})
    trainer = records.trainer(folder, faults=_injected(disk))
    try:
        trainer.wait_for_step(7, 60)
        disk.fill(room)
        code = trainer.wait(120)
        status = trainer.status
        said = "" if status is None else f"{status.state}, {status.reason}: {status.message}"
        problem = _ended_full(trainer, code, said)
    finally:
        trainer.kill()
        disk.empty()
    if (records.data / name).exists():
        return "a half-written record has a name"
    again = records.trainer(folder, "--resume")
    try:
        return problem or again.end()
    finally:
        again.kill()


def _ended_full(process: Launched, code: int | None, said: str) -> str:
    if code != 75 or not said.startswith("interrupted, disk_full"):
        return f"it exited with status {code}: {said}: {process.log[-300:]}"
    return ""
