"""O6 to O8: students whose texts never end or only repeat, and logits that are not finite."""

from collections.abc import Callable
from typing import Any

from faults.processes import Usage, usage_of
from faults.rollouts.courses import (
    INTERVAL,
    KINDS,
    courses,
    home_of_writers,
    sections_of,
    serving,
)
from faults.row import Tally
from faults.stage import Stage
from faults.trainer.runs import checkpoints
from faults.trainer.runs.courses import Course
from faults.trainer.runs.run import Trainer
from lectern_common.json_lines import read_json_lines
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState

# More steps than are kept in rollouts.jsonl, so that its bound is reached.
_LONG, _SHORT = 900, 120
_MOST_LINES = 4 * 402
_MAX_NEW_TOKENS = 48
# Between a quarter of a run, when all is loaded, and its end.
_GROWS_BYTES = 16 << 20

Lines = list[dict[str, Any]]


def endless(stage: Stage) -> Tally:
    """O6: no text ends by itself."""

    def wrong(metrics: Lines, rollouts: Lines) -> str:
        for line in metrics:
            if line["rollout/finished_share"] != 0 or line["rollout/mean_length"] != (
                _MAX_NEW_TOKENS
            ):
                return f"the metrics of step {line['step']} do not say that no text ended"
        ended = [line for line in rollouts if line["end"] is not None]
        return f"rollouts.jsonl has a text that ended: {ended[0]['ids']}" if ended else ""

    return _whole_runs(stage, {"endless=1": wrong}, "finished_share 0, mean_length the limit")


def repeating(stage: Stage) -> Tally:
    """O7: texts repeat one token, or three."""

    def wrong_of(period: int) -> Callable[[Lines, Lines], str]:
        grams = _MAX_NEW_TOKENS - 3
        share = period / grams

        def wrong(metrics: Lines, rollouts: Lines) -> str:
            for line in metrics:
                # A text that begins with an end token is over before it can repeat.
                distinct = line.get("rollout/distinct_4", share)
                if abs(distinct - share) > 1e-6:
                    return f"step {line['step']} has distinct_4 {distinct}; expected {share}"
            repeated = [line for line in rollouts if len(line["ids"]) == _MAX_NEW_TOKENS]
            if not repeated or any(len(set(line["ids"])) > period for line in repeated):
                return "rollouts.jsonl does not show the repetition"
            return ""

        return wrong

    kinds = {f"repeating={period}": wrong_of(period) for period in (1, 3)}
    return _whole_runs(stage, kinds, "distinct_4 0.02 and 0.07")


def _whole_runs(stage: Stage, kinds: dict[str, Callable[[Lines, Lines], str]], shown: str) -> Tally:
    """Trains a run under each fault, with stale_steps 0 and 1, and looks at what it leaves."""
    tally = Tally()
    home = home_of_writers(stage)
    steps = stage.tries(_LONG, _SHORT)
    more = {
        "rollout": {"max_new_tokens": _MAX_NEW_TOKENS, "fraction": 1},
        "objective": {"alpha": 0},
        "schedule": {"steps": steps},
        "evaluation": {"every_steps": steps},
        "checkpoint": {"every_steps": 50},
    }
    for fault, wrong in kinds.items():
        for name, kind in KINDS.items():
            stage.say(f"{fault}, {name}")
            with serving(stage, home) as server:
                folder = home.folder_of(**sections_of(kind, server.address, **more))
                trainer = Trainer(stage, home, folder, forked=True, faults=(fault,))
                pids = {"trainer": trainer.process.pid, "teacher": server.process.pid}
                try:
                    began = _usage(trainer, pids, steps // 4)
                    problem = _growth(began, _usage(trainer, pids, steps * 9 // 10))
                    problem = trainer.end() or problem
                finally:
                    trainer.kill()
            if not problem:
                problem = wrong(read_json_lines(folder.metrics_path)[1:], _kept(folder))
                problem = problem or _too_many_lines(folder)
            tally.count(not problem, f"{fault}, {name}: {problem}")
    tally.figure = (
        f"{steps} steps each: {shown} in the metrics; memory of trainer and teacher, threads and "
        f"descriptors flat, at most {_MOST_LINES} rollouts kept"
    )
    return tally


def _usage(trainer: Trainer, pids: dict[str, int], step: int) -> dict[str, Usage]:
    """Returns the resources of each process after a step; {} if the trainer ends before."""
    if trainer.wait_for_step(step, 600) is None:
        return {}
    return {name: usage_of(pid) for name, pid in pids.items()}


def _growth(began: dict[str, Usage], now: dict[str, Usage]) -> str:
    """Returns which resource grew, or ""."""
    for name, before in began.items():
        after = now.get(name)
        if after is None:
            return "the trainer ended too soon to be looked at"
        if after.memory_bytes - before.memory_bytes > _GROWS_BYTES:
            mib = (after.memory_bytes - before.memory_bytes) / 2**20
            return f"the {name}'s memory grew by {mib:.0f} MiB"
        if after.threads > before.threads + 2 or after.descriptors > before.descriptors + 2:
            return f"the {name} had {before}, then {after}"
    return ""


def _kept(folder: RunFolder) -> Lines:
    return read_json_lines(folder.rollouts_path)


def _too_many_lines(folder: RunFolder) -> str:
    count = len(_kept(folder))
    return "" if 0 < count <= _MOST_LINES else f"rollouts.jsonl has {count} lines"


# The first text of all, one before the first checkpoint, and one after others.
_BROKEN_STEPS = (0, 3, 2 * INTERVAL + 2)
_VALUES = ("nan", "inf", "-inf")


def not_finite(stage: Stage) -> Tally:
    """O8: the logits of a step's texts are nan, inf or all -inf."""
    tally = Tally()
    home = home_of_writers(stage)
    with serving(stage, home) as server:
        both = courses(
            stage,
            home,
            server.address,
            schedule={"steps": 4 * INTERVAL},
            # So that every step has texts that can break.
            rollout={"fraction": 1},
            objective={"alpha": 0},
        )
        tries = [
            (kind, course, step, value)
            for kind, course in zip(KINDS, both, strict=True)
            for step in _BROKEN_STEPS
            for value in _VALUES
        ]
        # In quick tries: every step, every value, both kinds.
        for kind, course, step, value in tries[:: stage.tries(1, 4)]:
            stage.say(f"{kind}, {value} in step {step}")
            problem = _tried(stage, course, f"not-finite-texts={step}:{value}", step)
            tally.count(not problem, f"{kind}, {value} in step {step}: {problem}")
    tally.figure = (
        "fails (diverged), names the last checkpoint and what to do; that is intact, and a run "
        "resumed from it without the fault ends byte-equal"
    )
    return tally


def _tried(stage: Stage, course: Course, fault: str, step: int) -> str:
    folder = course.begin()
    trainer = Trainer(stage, course.home, folder, forked=True, faults=(fault,))
    try:
        exit_status = trainer.wait()
    finally:
        trainer.kill()
    problem = _ended_well(trainer, exit_status, step - _stale_steps(course))
    if problem:
        return problem
    resumed = Trainer(stage, course.home, folder, ("--resume",), forked=True)
    try:
        return course.problem_of_end(resumed)
    finally:
        resumed.kill()


def _stale_steps(course: Course) -> int:
    return int(course.spec["rollout"].get("stale_steps", 0))


def _ended_well(trainer: Trainer, exit_status: int | None, last_step: int) -> str:
    """Returns what is wrong with a run that diverged while it wrote, in step `last_step`."""
    status, newest = trainer.status, checkpoints.newest_step(trainer.folder)
    if exit_status != 1 or status is None or status.state is not RunState.FAILED:
        return f"it exited with status {exit_status}: {status}"
    if status.reason != "diverged":
        return f"its reason is {status.reason}: {status.message}"
    expected = max(0, last_step) // INTERVAL * INTERVAL
    if newest != expected:
        return f"the newest checkpoint is of step {newest}; expected {expected}"
    named = f"the last checkpoint is of step {newest}" if newest else "there is no checkpoint"
    for words in ("logits are not finite", named, "lower learning rate"):
        if words not in str(status.message):
            return f"it does not say {words!r}: {status.message}"
    return checkpoints.first_problem(trainer.folder)
