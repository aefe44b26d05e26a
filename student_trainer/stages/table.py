"""The function of each stage. None is imported before it is asked for: most of them need torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from lectern_common.roots import Roots
from lectern_common.stages.requests import REQUESTS
from lectern_common.stages.status import Report
from student_trainer.stop import Stop


class StageFunction(Protocol):
    """What a stage is: it does what is asked, and knows nothing of task folders.

    It returns its result, as JSON values; the text under "markdown", if there is one, is for
    people. It raises StopRequested soon after a stop is requested, and LecternError for what goes
    wrong. Called again with the same `work`, it goes on.
    """

    def __call__(
        self, asked: Any, roots: Roots, work: Path, *, stop: Stop, report: Report
    ) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Stage:
    """A stage: the class of its request, and its function; each is imported when it is called."""

    request: Callable[[], type[BaseModel]]
    function: Callable[[], StageFunction]


def _evaluate() -> StageFunction:
    from student_trainer.evaluating.stage import evaluate

    return evaluate


def _export() -> StageFunction:
    from student_trainer.exporting.stage import export

    return export


def _publish() -> StageFunction:
    from student_trainer.publishing.stage import publish

    return publish


def _precompute() -> StageFunction:
    from student_trainer.record.stage import precompute

    return precompute


STAGES: dict[str, Stage] = {
    "evaluate": Stage(REQUESTS["evaluate"], _evaluate),
    "export": Stage(REQUESTS["export"], _export),
    "publish": Stage(REQUESTS["publish"], _publish),
    "precompute": Stage(REQUESTS["precompute"], _precompute),
}
