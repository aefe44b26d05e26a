"""Faults of a trainer whose student writes, injected into the process before it starts.

announced=SECONDS       the run folder has a file `phase` with what the trainer does in a step, and
                        how often it has begun that: `writing`, `scoring` (it waits for the teacher)
                        or `learning`; each token and each part of an update takes this much longer
endless=1               no text ends by itself
repeating=TOKENS        each text repeats its first tokens, so many of them
not-finite-texts=STEP:VALUE   at the fourth token of this step's texts all logits are VALUE (nan)
full-rollouts=STEP      there is no space for the rollouts of this step and later ones
"""

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from faults.replacing import put

PHASE_NAME = "phase"
WRITING, SCORING, LEARNING = "writing", "scoring", "learning"
_RESTING = "resting"
_LINE_BYTES = 40
_BROKEN_TOKEN = 3


def phase_of(run_folder: Path) -> tuple[str, int, int]:
    """Returns (phase, how often it was begun, pid of the trainer) as last announced."""
    try:
        phase, count, pid = (run_folder / PHASE_NAME).read_text().split()
    except (FileNotFoundError, ValueError):
        return _RESTING, 0, 0
    return phase, int(count), int(pid)


class _Announced:
    """The file that says what the trainer does; it is silent outside of steps."""

    def __init__(self) -> None:
        self._file: int | None = None
        self._counts: dict[str, int] = {}
        self.phase = _RESTING

    def says(self, phase: str) -> None:
        if self._file is None:
            path = Path(sys.argv[1]) / PHASE_NAME  # the trainer's first option is its run folder
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
        self.phase = phase
        self._counts[phase] = self._counts.get(phase, 0) + 1
        line = f"{phase} {self._counts[phase]} {os.getpid()}".ljust(_LINE_BYTES)
        os.pwrite(self._file, line.encode(), 0)


def _announced(value: str) -> None:
    from student_trainer.generating import generator
    from student_trainer.generating.rollouts.writing import Rollouts
    from student_trainer.objective.loss import distillation_loss
    from student_trainer.run import loop
    from student_trainer.run.optim import set_learning_rate
    from student_trainer.teacher.prefetch import Asking

    seconds, says = float(value), _Announced()
    write, tokens = Rollouts._write, generator._Writer._next_tokens
    wait, train_step, keep = Asking.wait_for, loop._train_step, loop._of_rollouts
    is_in_step = False

    def stepped(*arguments: Any) -> None:
        nonlocal is_in_step
        is_in_step = True
        try:
            train_step(*arguments)
        finally:
            is_in_step = False
            says.says(_RESTING)

    def writing(self: Rollouts, step: int) -> Any:
        says.says(WRITING)
        return write(self, step)

    def slow_tokens(self: Any) -> Any:
        time.sleep(seconds)
        return tokens(self)

    def waiting(self: Asking, future: Any) -> Any:
        if is_in_step and not future.done():
            says.says(SCORING)
        return wait(self, future)

    def learning(function: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any, **named: Any) -> Any:
            if is_in_step and says.phase != LEARNING:
                says.says(LEARNING)
            time.sleep(seconds / 2)
            result = function(*arguments, **named)
            time.sleep(seconds / 2)
            return result

        return slow

    put(Rollouts, "_write", writing)
    put(generator._Writer, "_next_tokens", slow_tokens)
    put(Asking, "wait_for", waiting)
    put(loop, "distillation_loss", learning(distillation_loss))
    put(loop, "set_learning_rate", learning(set_learning_rate))
    put(loop, "_of_rollouts", learning(keep))
    put(loop, "_train_step", stepped)


def _endless(_value: str) -> None:
    from student_trainer.generating import generator

    create = generator._Writer.__init__

    def barred(self: Any, *arguments: Any) -> None:
        model, prompts, sampling, ends, stop, is_over, max_rows, barred = arguments
        never = frozenset(barred) | frozenset(ends)
        create(self, model, prompts, sampling, ends, stop, is_over, max_rows, never)

    put(generator._Writer, "__init__", barred)


def _repeating(value: str) -> None:
    from student_trainer.generating import generator

    period, choose = int(value), generator._Writer._chosen

    def repeated(self: Any, logits_BV: Any) -> Any:
        chosen = choose(self, logits_BV)
        return [
            row.ids[-period] if len(row.ids) >= period else token
            for row, token in zip(self._going, chosen, strict=True)
        ]

    put(generator._Writer, "_chosen", repeated)


def _not_finite_texts(value: str) -> None:
    from student_trainer.generating import generator
    from student_trainer.generating.rollouts.writing import Writer

    step, _, bad = value.partition(":")
    write, choose = Writer.write, generator._Writer._chosen
    current = -1

    def written(self: Writer, student: Any, slots: Any, stop: Any) -> Iterator[Any]:
        nonlocal current
        current = slots[0].step
        return write(self, student, slots, stop)

    def broken(self: Any, logits_BV: Any) -> Any:
        lengths = [len(row.ids) for row in self._going]
        if current == int(step) and _BROKEN_TOKEN in lengths:
            logits_BV = logits_BV.new_full(logits_BV.shape, float(bad or "nan"))
        return choose(self, logits_BV)

    put(Writer, "write", written)
    put(generator._Writer, "_chosen", broken)


def _full_rollouts(value: str) -> None:
    from lectern_common.json_lines import append_json_line
    from student_trainer.generating.rollouts import kept

    def full(path: Path, line: dict[str, Any]) -> None:
        if line["step"] >= int(value):
            raise OSError(errno.ENOSPC, "No space left on device")
        append_json_line(path, line)

    put(kept, "append_json_line", full)


FAULTS: dict[str, Callable[[str], None]] = {
    "announced": _announced,
    "endless": _endless,
    "repeating": _repeating,
    "not-finite-texts": _not_finite_texts,
    "full-rollouts": _full_rollouts,
}
