"""R1, R6 and R7: recorders killed, their teacher gone, runs killed that keep what they receive."""

import random
import shutil

from faults.record.recordings import Records, difference, hashes_of, served, started
from faults.row import Tally
from faults.stage import Stage
from faults.trainer.runs.run import Home
from lectern_common.run.status import RunState

_LONGEST_RUN_SECONDS = 2.0
_BEGINNING_SECONDS = 0.8


def killed_recorders(stage: Stage) -> Tally:
    """R1: kill -9 of precompute at random instants, started again each time."""
    tally = Tally()
    kills, done = stage.tries(50, 5), 0
    draw = random.Random(0)  # noqa: S311 - when to strike
    home = Home(stage)
    with served(stage, home) as server:
        records = Records(stage, home)
        whole = hashes_of(records.made(server.address, "whole"))
        total = (records.data / "whole" / "training" / "rows.bin").stat().st_size
        made, since, task = 0, 0, records.task(server.address, "cut")
        while done < kills or since:
            stage.say(f"kill {done} of {kills}")
            recorder = records.start(task, "frequent-saves=0.05")
            if done < kills:
                # Of every other one, at a random row; most of its life, it only begins.
                if done % 2:
                    recorder.wait(draw.uniform(0, _BEGINNING_SECONDS))
                else:
                    recorder.wait_for_rows(draw.randrange(total))
                recorder.kill()
                if not (records.data / "cut").exists():
                    done, since = done + 1, since + 1
                    continue
                tally.require(_is_whole(records), "a half-written record has a name")
                recorder = records.start(task)
            problem = recorder.end() or difference(records.data / "cut", whole)
            tally.count(not problem, f"after {since} kills: {problem}", since or 1)
            made, since = made + 1, 0
            shutil.rmtree(records.data / "cut", ignore_errors=True)
            task = records.task(server.address, "cut")
    tally.figure = f"{made} records made between {kills} kills, each with the bytes of the first"
    return tally


def _is_whole(records: Records) -> bool:
    return (records.data / "cut" / "manifest.json").exists()


def teacher_gone(stage: Stage) -> Tally:
    """R6: the teacher of a recording is killed; it is back at once, or only after the budget."""
    tally = Tally()
    home = Home(stage)
    server = started(stage, home)
    address = server.address
    try:
        records = Records(stage, home)
        whole = hashes_of(records.made(address, "whole"))
        row = 4 * SEQ_BYTES
        for number in range(stage.tries(6, 2)):
            is_long = number % 2 == 1
            stage.say(f"outage {number + 1}, {'long' if is_long else 'short'}")
            name = f"cut-{number}"
            recorder = records.start(records.task(address, name))
            try:
                recorder.wait_for_rows(row * (1 + 5 * number))
                server.kill()
                if is_long:
                    code = recorder.wait(60)
                    status = recorder.task.read_status()
                    said = None if status is None else (status.state, status.reason)
                    tally.require(
                        code == 75 and said == (RunState.INTERRUPTED, "teacher_unavailable"),
                        f"without its teacher it exited with {code}: {recorder.said}",
                    )
                    tally.require(
                        not (records.data / name).exists(), "a half-written record has a name"
                    )
                server = started(stage, home, address)
                if is_long:
                    recorder = records.start(recorder.task)
                problem = recorder.end() or difference(records.data / name, whole)
                tally.count(not problem, f"{name}: {problem}")
            finally:
                recorder.kill()
    finally:
        server.kill()
    tally.figure = (
        "goes on once it is back, or ends as interrupted (teacher_unavailable) after the outage "
        "budget, goes on later, and has the same bytes"
    )
    return tally


# Of the hidden states of one sequence of the dataset.
SEQ_BYTES = 32 * 64 * 4


def killed_runs(stage: Stage) -> Tally:
    """R7: kill -9 of runs that keep what they receive, resumed each time."""
    tally = Tally()
    kills = stage.tries(24, 4)
    draw = random.Random(1)  # noqa: S311 - when to strike
    home = Home(stage)
    with served(stage, home) as server:
        records = Records(stage, home)
        whole = hashes_of(records.made(server.address, "whole"))
        done = runs = 0
        while done < kills:
            runs, since = runs + 1, 0
            name = f"kept-{runs}"
            teacher = {"address": server.address, "record_to": name}
            folder = records.run(teacher)
            while since < 4 and done < kills:
                stage.say(f"kill {done} of {kills}")
                trainer = records.trainer(folder, "--resume")
                trainer.wait(draw.uniform(0.2, _LONGEST_RUN_SECONDS))
                if not trainer.alive:
                    break
                trainer.kill()
                done, since = done + 1, since + 1
                tally.require(
                    not (records.data / name).exists()
                    or (records.data / name / "manifest.json").exists(),
                    "a half-written record has a name",
                )
            trainer = records.trainer(folder, "--resume")
            try:
                problem = trainer.end() or difference(records.data / name, whole)
            finally:
                trainer.kill()
            tally.count(not problem, f"after {since} kills: {problem}", since or 1)
    tally.figure = f"{runs} runs with {kills} kills kept what precompute records, byte for byte"
    return tally
