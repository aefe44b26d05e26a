"""S1 and S2: trainers killed at any instant, and during saves, until their runs end."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from faults.row import Tally
from faults.stage import Stage
from faults.trainer.injections import SAVING_NAME
from faults.trainer.runs import checkpoints
from faults.trainer.runs.courses import Course, both_courses
from faults.trainer.runs.run import Trainer, events_of
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState

_INTERVAL = 5
_STEPS = 300
_SECTIONS = {
    "schedule": {"steps": _STEPS},
    "checkpoint": {"every_steps": _INTERVAL},
    "evaluation": {"every_steps": 20},
}
_KILLED = -9
# The longest life before a kill; an undisturbed run takes a little longer.
_LONGEST_LIFE_SECONDS = 1.5

Strike = Callable[[Trainer, random.Random], bool]
"""Waits for the instant to kill a trainer; False if that instant did not come."""


@dataclass
class Lives:
    """The outcome of the kills of one course.

    Attributes:
        survived: kills in runs that continued and ended as they should.
        lost: kills in runs that did not; `problems` says why, one sentence per run.
        instants: what the trainers were doing when killed.
        steps_lost: the most steps lost by one kill.
    """

    survived: int = 0
    lost: int = 0
    problems: list[str] = field(default_factory=list)
    instants: Counter[str] = field(default_factory=Counter)
    steps_lost: int = 0

    @property
    def kills(self) -> int:
        return self.survived + self.lost


class Victim:
    """One run, whose trainers are killed one after another; each is resumed."""

    def __init__(self, stage: Stage, course: Course, faults: tuple[str, ...] = ()) -> None:
        self._stage = stage
        self._course = course
        self._faults = faults
        self.folder = course.begin()
        self.kills = 0
        self.problem = ""
        self.instants: Counter[str] = Counter()
        self.steps_lost = 0

    def life(self, strike: Strike | None, draw: random.Random) -> bool:
        """Runs one life of the trainer; returns whether another follows. None lets it end."""
        start, begun = checkpoints.newest_step(self.folder), self._assembled()
        trainer = Trainer(
            self._stage,
            self._course.home,
            self.folder,
            ("--resume",),
            forked=True,
            faults=self._faults,
        )
        try:
            if strike is not None and strike(trainer, draw):
                trainer.kill()
            exit_status = trainer.wait()
        finally:
            trainer.kill()
        since = self._assembled()[len(begun) :]
        if since and since != [start]:
            self.problem = f"it resumed at step {since[0]}; the checkpoint was of step {start}"
        if exit_status != _KILLED:
            self.problem = self.problem or self._course.problem_of_end(trainer)
            return False
        self.kills += 1
        self._look(trainer, bool(since))
        return not self.problem

    def _look(self, trainer: Trainer, began: bool) -> None:
        """Checks what a killed trainer left behind."""
        newest = checkpoints.newest_step(self.folder)
        self.instants[_instant(self.folder, newest) if began else "at the start"] += 1
        lost = max(0, trainer.steps() - newest)
        self.steps_lost = max(self.steps_lost, lost)
        self.problem = self.problem or checkpoints.first_problem(self.folder)
        if lost > _INTERVAL:
            self.problem = f"{lost} steps were lost"

    def _assembled(self) -> list[int]:
        return [int(event["step"]) for event in events_of(self.folder, "assembled")]


def _instant(folder: RunFolder, newest: int) -> str:
    if checkpoints.leftovers(folder):
        return "in a save"
    return "at the end" if newest == _STEPS else "between saves"


def killed_trainers(stage: Stage) -> Tally:
    """S1: kills trainers with -9 at random instants, until their runs end."""
    with both_courses(stage, **_SECTIONS) as both:
        each = killed(stage, both, stage.tries(100, 16), _at_any_instant)
    tally = tally_of(each, stage.tries(100, 16))
    instants = sum((lives.instants for lives in each), Counter[str]())
    told = ", ".join(f"{count} {instant}" for instant, count in instants.most_common())
    every = stage.quick or len(instants) == 4
    tally.require(every, f"not every kind of instant was hit: {told}")
    lost = max(lives.steps_lost for lives in each)
    tally.figure = (
        f"killed {told}; resumed each time, at most {lost} steps lost of the {_INTERVAL} "
        "between checkpoints; metrics and weights bit-equal"
    )
    return tally


def _at_any_instant(trainer: Trainer, draw: random.Random) -> bool:
    exit_status = trainer.wait(draw.random() * _LONGEST_LIFE_SECONDS)
    status = trainer.status
    return exit_status is None and (status is None or status.state is not RunState.SUCCEEDED)


_SLOW_SAVES = "slow-saves=0.001"
_SAVE_SECONDS = 0.3  # about how long such a save takes
_SAVES_STRUCK = 3  # strikes one of the first saves of a life
# Fewer saves than in S1, because they are slow.
_SHORT = _SECTIONS | {"schedule": {"steps": 60}}


def killed_in_saves(stage: Stage) -> Tally:
    """S2: kills trainers with -9 at random moments of saves, which are slowed down."""
    kills = stage.tries(50, 8)
    with both_courses(stage, **_SHORT) as both:
        each = killed(stage, both, kills, _in_a_save, (_SLOW_SAVES,))
        tally = tally_of(each, kills)
        for course in both:
            problem = _saved_twice(stage, course)
            tally.count(not problem, f"saved twice: {problem}")
    instants = sum((lives.instants for lives in each), Counter[str]())
    tally.figure = (
        f"{instants['in a save']} left a partial checkpoint, hidden, and removed at the resume; "
        "the newest visible one was always complete; saving a step twice is not an error"
    )
    return tally


def _in_a_save(trainer: Trainer, draw: random.Random) -> bool:
    """Waits for a moment within a save of this trainer."""
    sign = trainer.folder.path / SAVING_NAME
    sign.unlink(missing_ok=True)  # from an earlier life
    for _ in range(draw.randrange(_SAVES_STRUCK) + 1):
        if trainer.wait_until(lambda: not sign.exists(), 60) is None:
            return False
        if trainer.wait_until(sign.exists, 60) is None:
            return False
    save = sign.stat().st_ino if sign.exists() else None
    time.sleep(draw.random() * _SAVE_SECONDS)
    return save is not None and sign.exists() and sign.stat().st_ino == save


def _saved_twice(stage: Stage, course: Course) -> str:
    """Stops a run, resumes it, and stops it before its next step; returns what went wrong.

    So the second trainer saves a step that is already saved.
    """
    folder = course.begin()
    for options in ((), ("--resume",)):
        trainer = Trainer(
            stage, course.home, folder, options, forked=True, faults=("waiting-steps=0.2",)
        )
        try:
            trainer.wait_for_state(RunState.RUNNING, 60)
            if not options:
                trainer.wait_for_step(2, 60)
            trainer.signal(signal.SIGTERM)
            exit_status = trainer.wait()
        finally:
            trainer.kill()
        if exit_status != 0 or not trainer.status_is(RunState.STOPPED):
            return f"once stopped, it exited with status {exit_status}: {trainer.status}"
        found = {path: path.stat().st_ino for path in checkpoints.visible(folder)}
        if not options:
            before = found
    return "" if found == before else f"{sorted(before)} became {sorted(found)}"


def killed(
    stage: Stage,
    both: list[Course],
    kills: int,
    strike: Strike,
    faults: tuple[str, ...] = (),
) -> list[Lives]:
    """Returns the outcome of `kills` kills, over the two courses side by side."""
    done: Counter[str] = Counter()

    def course_of(number: int) -> Lives:
        draw = random.Random(number)  # noqa: S311 - when to strike
        lives, own = Lives(), (kills + 1 - number) // 2
        while lives.kills < own:
            victim = Victim(stage, both[number], faults)
            goes_on = True
            while goes_on:
                is_left = lives.kills + victim.kills < own
                goes_on = victim.life(strike if is_left else None, draw)
                done[str(number)] = lives.kills + victim.kills
                stage.say(f"{done.total()} of {kills} kills")
            _add(lives, victim)
        return lives

    with ThreadPoolExecutor(len(both)) as pool:
        return list(pool.map(course_of, range(len(both))))


def _add(lives: Lives, victim: Victim) -> None:
    problem = victim.problem or _left(victim.folder)
    if problem:
        lives.lost += victim.kills
        lives.problems.append(f"after {victim.kills} kills: {problem}")
    else:
        lives.survived += victim.kills
    lives.instants += victim.instants
    lives.steps_lost = max(lives.steps_lost, victim.steps_lost)


def _left(folder: RunFolder) -> str:
    """Returns what an ended run should not have left behind, or ""."""
    left = checkpoints.leftovers(folder) or [
        event["path"] for event in events_of(folder, "checkpoint_set_aside")
    ]
    return f"{left[0]} was left behind" if left else ""


def tally_of(each: list[Lives], kills: int) -> Tally:
    """Returns the counts of `kills` kills."""
    tally = Tally()
    for lives in each:
        tally.tries += lives.kills
        tally.survived += lives.survived
        tally.misses += lives.problems
    tally.require(tally.tries == kills, f"{tally.tries} of {kills} kills were tried")
    return tally
