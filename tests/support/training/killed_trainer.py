"""A trainer that kills itself with SIGKILL in a chosen phase of an on-policy step.

    python -m tests.support.training.killed_trainer PHASE COUNT TRAINER-ARGUMENTS...

at the COUNT-th rollout that is written (`writing`), request about rollouts (`scoring`), or
micro-batch of rollouts that is learnt (`learning`), before it is finished. COUNT 0 never does.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from student_trainer.__main__ import main
from student_trainer.generating.rollouts import writing
from student_trainer.generating.rollouts.rows import Rollout, WrittenBatch
from student_trainer.run import loop

_HERE: dict[str, tuple[Any, str]] = {
    "writing": (writing.Rollouts, "_request"),
    "scoring": (loop, "ask"),
    "learning": (loop, "_micro_step"),
}


def _counts(phase: str, arguments: tuple[Any, ...]) -> bool:
    """Returns True if a call is about rollouts."""
    if phase == "scoring":  # one row by itself; rows of data are asked about together
        return len(arguments[1].inputs_BS) == 1
    return isinstance(arguments[1], Rollout | WrittenBatch)


def kill_at(phase: str, count: int) -> None:
    place, name = _HERE[phase]
    plain: Callable[..., Any] = getattr(place, name)
    left = count

    def called(*arguments: Any) -> Any:
        nonlocal left
        left -= _counts(phase, arguments)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*arguments)

    setattr(place, name, called)


if __name__ == "__main__":
    if int(sys.argv[2]):
        kill_at(sys.argv[1], int(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
