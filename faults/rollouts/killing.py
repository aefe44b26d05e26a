"""O1 to O4: trainers killed while they write, wait or learn; the teacher killed in a step."""

import random
import signal
import time
from collections import Counter
from contextlib import ExitStack

import psutil

from faults.processes import wait_for
from faults.rollouts.courses import INTERVAL, STEPS, courses, home_of_writers, serving
from faults.rollouts.injections import LEARNING, SCORING, WRITING, phase_of
from faults.row import Tally
from faults.stage import Stage
from faults.trainer.killing import Strike, killed, tally_of
from faults.trainer.runs.courses import Course
from faults.trainer.runs.run import Trainer

# Seconds that tokens and parts of an update take longer, and a forward of the teacher: so that the
# phase that is struck lasts some tenths of a second.
_SLOWED = {WRITING: (0.005, 0.0), SCORING: (0.0005, 0.1), LEARNING: (0.02, 0.0)}
_PHASE_SECONDS = 0.1
# A strike is in one of the first steps of a life: some before a checkpoint, some after it.
_STEPS_STRUCK = 2 * INTERVAL + 2


def killed_while_writing(stage: Stage) -> Tally:
    """O1: kills trainers with -9 while they write."""
    return _killed_while(stage, WRITING)


def killed_while_scoring(stage: Stage) -> Tally:
    """O2: kills trainers with -9 while they wait for the teacher's scores."""
    return _killed_while(stage, SCORING)


def killed_while_learning(stage: Stage) -> Tally:
    """O3: kills trainers with -9 while they learn."""
    return _killed_while(stage, LEARNING)


def _killed_while(stage: Stage, phase: str) -> Tally:
    kills = stage.tries(30, 3)
    slower, slow_teacher = _SLOWED[phase]
    home = home_of_writers(stage)
    with serving(stage, home, f"slow-model={slow_teacher}") as server:
        both = courses(stage, home, server.address)
        each = killed(stage, both, kills, _strike_while(phase), (f"announced={slower}",))
    tally = tally_of(each, kills)
    lost = max(lives.steps_lost for lives in each)
    tally.figure = (
        f"each died {phase}, with stale_steps 0 and 1 in turns; resumed, at most {lost} steps lost "
        f"of the {INTERVAL} between checkpoints; weights, metrics and rollouts.jsonl byte-equal"
    )
    return tally


def _strike_while(phase: str) -> Strike:
    """Returns a strike that freezes the trainer in the phase; so it dies in it."""

    def strike(trainer: Trainer, draw: random.Random) -> bool:
        first = draw.randrange(_STEPS_STRUCK) + 1
        while _begins(trainer, phase, first):
            time.sleep(draw.random() * _PHASE_SECONDS)
            if _frozen_in(trainer, phase):
                return True
            first += 1
        return False

    return strike


def _begins(trainer: Trainer, phase: str, count: int) -> bool:
    """Waits until the trainer begins a phase for that time; False if it ends before."""

    def begun() -> bool:
        now, times, pid = phase_of(trainer.folder.path)
        return pid == trainer.process.pid and now == phase and times >= count

    return trainer.wait_until(begun, 120) is not None


def _frozen_in(trainer: Trainer, phase: str) -> bool:
    """Freezes the trainer; lets it go on, and returns False, unless it is in the phase."""
    if not trainer.alive:
        return False
    trainer.signal(signal.SIGSTOP)
    process = psutil.Process(trainer.process.pid)
    wait_for(lambda: not trainer.alive or process.status() == psutil.STATUS_STOPPED)
    if trainer.alive and phase_of(trainer.folder.path)[0] == phase:
        return True
    trainer.signal(signal.SIGCONT)
    return False


# A forward is slow enough that a teacher killed while the student waits dies with an answer in it.
_SLOW_TEACHER = "slow-model=0.05"
_ANNOUNCED = "announced=0.002"


def teacher_killed(stage: Stage) -> Tally:
    """O4: kill -9 of the teacher in the middle of a step; it is back within seconds."""
    tally = Tally()
    kills = stage.tries(30, 4)
    home = home_of_writers(stage)
    struck: Counter[str] = Counter()
    with ExitStack() as stack:
        server = stack.enter_context(serving(stage, home, _SLOW_TEACHER))
        address = server.address
        both = courses(stage, home, address)
        server.kill()
        for number, course in enumerate(both):
            own = (kills + 1 - number) // 2
            problem = _without_its_teacher(stage, course, address, own, struck, number)
            tally.count(not problem, problem, own)
    told = " and ".join(f"{count} while {phase}" for phase, count in sorted(struck.items()))
    tally.require(struck.total() == kills, f"{struck.total()} of {kills} kills were tried")
    tally.figure = (
        f"killed {told}, with stale_steps 0 and 1; losses, weights and rollouts.jsonl byte-equal"
    )
    return tally


def _without_its_teacher(
    stage: Stage, course: Course, address: str, kills: int, struck: Counter[str], seed: int
) -> str:
    """Runs a course whose teacher is killed so often; returns what goes wrong."""
    draw = random.Random(seed)  # noqa: S311 - when to strike
    home = course.home
    with ExitStack() as stack:
        server = stack.enter_context(serving(stage, home, _SLOW_TEACHER, address=address))
        trainer = Trainer(stage, home, course.begin(), forked=True, faults=(_ANNOUNCED,))
        stack.callback(trainer.kill)
        for number in range(kills):
            stage.say(f"kill {number + 1} of {kills}")
            trainer.wait_for_step(1 + number * (STEPS - INTERVAL) // kills, 120)
            phase = (WRITING, SCORING)[number % 2]
            if not _begins(trainer, phase, 1):
                return f"it was never {phase}: {trainer.end()}"
            time.sleep(draw.random() * _PHASE_SECONDS / 4)
            server.kill()
            struck[phase] += 1
            server = stack.enter_context(serving(stage, home, _SLOW_TEACHER, address=address))
        return course.problem_of_end(trainer)
