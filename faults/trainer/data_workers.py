"""S13: data workers are killed, and data is truncated under a trainer."""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from faults.processes import ROOT, environment
from faults.row import Tally
from faults.stage import Stage
from faults.trainer.runs import checkpoints
from faults.trainer.runs.courses import Course
from faults.trainer.runs.datasets import prepared
from faults.trainer.runs.run import Home, Trainer
from lectern_common.run.status import RunState

# More than `prepare` gives to two workers at a time.
_TEXT_FILES = 20
_KILLS = 2  # per round: a piece that ends a worker three times is given up
_PREPARE_SECONDS = 300.0
_END_SECONDS = 60.0


def data_is_lost(stage: Stage) -> Tally:
    """S13: kills workers of `lectern data prepare`; truncates shards under running trainers."""
    tally = Tally()
    home = Home(stage)
    slowest = _cut_shards(stage, tally, home)
    kills = _killed_workers(stage, tally)
    tally.require_within(slowest, _END_SECONDS, "ending after its data was truncated")
    tally.figure = (
        f"{kills} of prepare's workers killed: their pieces are redone, byte-equal; shards "
        f"truncated under a trainer: it ends within {slowest:.1f} s, keeps its checkpoints, and "
        "continues bit-equal once the data is back"
    )
    return tally


def _cut_shards(stage: Stage, tally: Tally, home: Home) -> float:
    """Truncates the shard of runs to several lengths; returns the most seconds they took to end."""
    shard = prepared(home.path, "cut") / "shard-00000.bin"
    whole = shard.read_bytes()
    course = Course.tried(
        stage,
        home,
        student={"config": "student"},
        data={"kind": "shards", "path": "cut"},
        schedule={"steps": 60},
        checkpoint={"every_steps": 10},
        evaluation={"every_steps": 30},
    )
    slowest = 0.0
    for share in (0.0, 0.3, 0.7)[: stage.tries(3, 1)]:
        stage.say(f"{share:.0%} of a shard left")
        folder = course.begin()
        trainer = Trainer(stage, home, folder, forked=True, faults=("waiting-steps=0.02",))
        try:
            trainer.wait_for_step(23, 60)
            os.truncate(shard, int(len(whole) * share) // 4 * 4)
            begun = time.monotonic()
            exit_status = trainer.wait(2 * _END_SECONDS)
            slowest = max(slowest, time.monotonic() - begun)
        finally:
            trainer.kill()
        problem = checkpoints.first_problem(folder)
        if exit_status in (None, 0) or checkpoints.newest_step(folder) < 20:
            problem = f"it exited with status {exit_status}: {trainer.status}"
        refused = Trainer(stage, home, folder, ("--resume",), forked=True)
        try:
            refused.wait()
        finally:
            refused.kill()
            shard.write_bytes(whole)
        if not refused.status_is(RunState.FAILED):
            problem = problem or f"resumed without its data, its status was {refused.status}"
        resumed = Trainer(stage, home, folder, ("--resume",), forked=True)
        try:
            problem = problem or course.problem_of_end(resumed)
        finally:
            resumed.kill()
        tally.count(not problem, f"{share:.0%} of a shard left: {problem}")
    return slowest


def _killed_workers(stage: Stage, tally: Tally) -> int:
    """Kills tokenizing workers; returns how many."""
    home, text = stage.folder / "home", stage.folder / "text"
    _write_text(text)
    tokenizer = prepared(home, "pages") / "tokenizer.json"
    words = ("--tokenizer", str(tokenizer), "--workers", "2", "--validation-fraction", "0")
    stage.say("preparing data undisturbed")
    _prepare(stage, home, text, "in-peace", words).wait(_PREPARE_SECONDS)
    draw = random.Random(0)  # noqa: S311 - when to strike
    rounds, kills = stage.tries(2, 1), 0
    for number in range(rounds):
        stage.say("killing workers")
        name = f"disturbed-{number}"
        process = _prepare(stage, home, text, name, words)
        killed = _killed_while(process, draw)
        exit_status = process.wait(_PREPARE_SECONDS)
        same = _bytes(home / "data" / "in-peace") == _bytes(home / "data" / name) != {}
        tally.count(
            exit_status == 0 and same,
            f"after {killed} kills it exited with status {exit_status}; byte-equal: {same}",
            max(1, killed),
        )
        kills += killed
    wanted = rounds * _KILLS
    tally.require(kills == wanted, f"{kills} of {wanted} workers were killed")
    return kills


def _killed_while(process: "subprocess.Popen[bytes]", draw: random.Random) -> int:
    """Kills up to _KILLS workers of a process while it lives; returns how many."""
    killed = 0
    while killed < _KILLS and process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            workers = [
                child
                for child in psutil.Process(process.pid).children()
                if "lectern_data.tokens.piece_worker" in child.cmdline()
            ]
            if len(workers) == 2:
                time.sleep(draw.random())
                workers[killed % 2].kill()
                killed += 1
        time.sleep(0.02)
    return killed


def _prepare(
    stage: Stage, home: Path, text: Path, name: str, words: Sequence[str]
) -> "subprocess.Popen[bytes]":
    sabotage = () if stage.sabotage is None else ("--sabotage", stage.sabotage)
    command = [sys.executable, "-m", "faults.launcher", "lectern", *sabotage, "--"]
    command += ["data", "prepare", str(text), "--output", name, "--home", str(home), *words]
    with (stage.folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def _write_text(folder: Path) -> None:
    """Writes files of random words, 1 MiB each, all different."""
    folder.mkdir()
    draw = random.Random(1)  # noqa: S311 - words
    words = [bytes(draw.choices(range(97, 123), k=draw.randrange(2, 9))) for _ in range(4000)]
    for number in range(_TEXT_FILES):
        text = b" ".join(draw.choices(words, k=(1 << 20) // 6))
        (folder / f"text-{number:03}.txt").write_bytes(text)


def _bytes(dataset: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(dataset.glob("*.bin"))}
