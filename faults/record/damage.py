"""R3 to R5: records with a flipped bit, of another teacher, and cut short."""

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from faults.models import write_model
from faults.processes import Server
from faults.record.recordings import Records, served
from faults.row import Tally
from faults.stage import Stage
from faults.trainer.runs.run import TEACHER_HIDDEN, VOCAB_SIZE, Ended, Home
from lectern_common.json_lines import read_json_lines
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState

FILES = (
    "training/rows.bin",
    "training/masks.bin",
    "training/index.bin",
    "head.safetensors",
    "teacher.binpb",
    "tokenizer_map.json",
    "manifest.json",
)
# Without a tokenizer on the student's side, nothing is compared with the teacher's.
_MAY_NOT_MATTER = ("manifest.json", "tokenizer_map.json")
_RECORD = {"record": "answers"}


def flipped(stage: Stage) -> Tally:
    """R3: a bit of a record is another one: of any file, of any of the rows."""
    tally = Tally()
    draw = random.Random(0)  # noqa: S311 - where to strike
    home = Home(stage)
    with served(stage, home) as server:
        records = Records(stage, home)
        whole = records.made(server.address, "whole")
    shutil.copytree(whole, records.data / "answers")
    undisturbed = records.ended(records.run(_RECORD))
    tries = stage.tries(6, 1)
    for name in FILES:
        for number in range(2 * tries if name.endswith("rows.bin") else tries):
            stage.say(f"a bit of {name}, {number + 1}")
            with damaged(records, whole) as record:
                data = bytearray((record / name).read_bytes())
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
                (record / name).write_bytes(data)
                problem = _trained_on(records, undisturbed, name)
            tally.count(not problem, f"a flipped bit of {name}: {problem}")
    tally.figure = "each named, at its opening or at the row, before anything was learnt from it"
    return tally


def cut_short(stage: Stage) -> Tally:
    """R5: files of a record are cut or missing, and half a record gets a name by hand."""
    tally = Tally()
    draw = random.Random(0)  # noqa: S311 - where to strike
    home = Home(stage)
    with served(stage, home) as server:
        records = Records(stage, home)
        whole = records.made(server.address, "whole")
        recorder = records.start(records.task(server.address, "half"))
        recorder.wait_for_rows(1)
        recorder.kill()
    half = records.data / ".half.recording" / "record"

    def cut(name: str, record: Path) -> None:
        size = (record / name).stat().st_size
        (record / name).write_bytes((record / name).read_bytes()[: draw.randrange(size)])

    def missing(name: str, record: Path) -> None:
        (record / name).unlink()

    damages: dict[str, Callable[[Path], object]] = {
        f"{what.__name__} {name}, {number}": partial(what, name)
        for what, tries in ((cut, stage.tries(3, 1)), (missing, 1))
        for name in FILES
        for number in range(tries)
    }
    for what, damage in damages.items():
        stage.say(what)
        with damaged(records, whole) as record:
            damage(record)
            problem = _not_refused(records)
        tally.count(not problem, f"{what}: {problem}")
    with damaged(records, half):
        problem = _not_refused(records)
    tally.count(not problem, f"half a record that was given a name: {problem}")
    tally.figure = "each refused before the first step, with the file named"
    return tally


def of_another(stage: Stage) -> Tally:
    """R4: another teacher's record in the place of a run's, whole or in part."""
    tally = Tally()
    home = Home(stage)
    other = write_model(
        stage.folder / "other", vocab_size=VOCAB_SIZE, hidden=TEACHER_HIDDEN, seed=9
    )
    with served(stage, home) as server:
        records = Records(stage, home)
        whole = records.made(server.address, "whole")
    words = ("--model", str(other), "--threads", "1")
    second = Server(
        stage.new_folder(), words, ("unmeasured",), stage.sabotage, fork_server=stage.fork_server
    )
    try:
        others = records.made(second.ready().address, "others")
    finally:
        second.kill()
    with damaged(records, whole):
        folder = records.run(_RECORD)
        trainer = records.trainer(folder)
        trainer.wait_for_step(12, 60)
        trainer.terminate()
        trainer.wait(60)
    with damaged(records, others):
        problem = _refusal(records, folder, "teacher.record answers is of", "--resume")
        tally.count(not problem, f"a run that another teacher's record should go on: {problem}")
        named = records.run({**_RECORD, "model": "teacher"})
        problem = _refusal(records, named, "teacher")
        tally.count(not problem, f"a spec that names its teacher: {problem}")
    mixed = [name for name in FILES if name not in ("manifest.json", "tokenizer_map.json")]
    for name in mixed[:: stage.tries(1, 2)]:
        stage.say(f"the other's {name}")
        with damaged(records, whole) as record:
            if (others / name).read_bytes() == (record / name).read_bytes():
                continue
            shutil.copyfile(others / name, record / name)
            problem = _trained_on(records, None, name)
        tally.count(not problem, f"the other's {name}: {problem}")
    tally.figure = "refused, with both teachers named; a file of the other is named"
    return tally


@contextmanager
def damaged(records: Records, source: Path) -> Iterator[Path]:
    """Yields a copy of a record, named `answers` while the block runs."""
    record = records.data / "answers"
    shutil.rmtree(record, ignore_errors=True)
    shutil.copytree(source, record)
    try:
        yield record
    finally:
        shutil.rmtree(record)


def _not_refused(records: Records) -> str:
    """Returns what is wrong if a run from the record is not refused before its first step."""
    folder = records.run(_RECORD)
    problem = _refusal(records, folder, "answers")
    if problem:
        return problem
    steps = [line["step"] for line in _lines(folder)]
    return f"it made steps {steps}" if steps else ""


def _refusal(records: Records, folder: RunFolder, says: str, *options: str) -> str:
    """Returns what is wrong if a run is not refused with these words."""
    trainer = records.trainer(folder, *options)
    try:
        code = trainer.wait(120)
    finally:
        trainer.kill()
    status = trainer.status
    if code != 1 or status is None or status.state is not RunState.FAILED:
        return f"it exited with status {code}, {status and status.state}"
    if says not in str(status.message):
        return f"it says {status.message!r}"
    return ""


def _trained_on(records: Records, undisturbed: Ended | None, name: str) -> str:
    """Returns what is wrong with a run from a damaged record: it must end with the file's name.

    Until then, what it learns is what the undisturbed run learns. A bit of the manifest that
    changes no meaning, or of a file that the run does not read, is of no consequence: then the run
    must be the undisturbed one.
    """
    folder = records.run(_RECORD)
    trainer = records.trainer(folder)
    try:
        code = trainer.wait(120)
    finally:
        trainer.kill()
    status = trainer.status
    if code == 0 and name in _MAY_NOT_MATTER and undisturbed is not None:
        return undisturbed.difference(Ended.of(folder))
    if code != 1 or status is None or status.state is not RunState.FAILED:
        return f"it exited with status {code}, {status and status.state}"
    said = str(status.message)
    if name == "manifest.json":
        return "" if "answers" in said or "record" in said else f"it says {said!r}"
    if name not in said:
        return f"it says {said!r}"
    if undisturbed is not None:
        for own, line in zip(undisturbed.lines, Ended.of(folder).lines, strict=False):
            if own != line:
                return f"before it failed, step {own['step']} was {line}; expected {own}"
    return ""


def _lines(folder: RunFolder) -> Iterator[dict[str, int]]:
    if folder.metrics_path.exists():
        yield from (line for line in read_json_lines(folder.metrics_path) if line["step"] > 0)
