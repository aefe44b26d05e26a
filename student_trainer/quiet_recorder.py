"""The recorder of every rank but the first: what is said of a run is said once."""

from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from lectern_common.run_folder import RunState
from student_trainer.recorder import Recorder

_log = structlog.get_logger()


class QuietRecorder:
    """Takes what `Recorder` takes, and writes none of it into the run's folder."""

    def __enter__(self) -> "QuietRecorder":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def open_metrics(self, report_to: Sequence[str], first_step: int) -> None: ...

    def set_state(
        self, state: RunState, reason: str | None = None, message: str | None = None
    ) -> None: ...

    def set_progress(self, **progress: Any) -> None: ...

    def no_checkpoint(self) -> None: ...

    def teacher_away(self, message: str | None) -> None:
        if message is not None:
            _log.warning("teacher_away", message=message)

    def event(self, kind: str, **details: Any) -> None: ...

    def record(self, step: int, metrics: Mapping[str, float | None]) -> None: ...

    def before_checkpoint(self) -> None: ...

    def after_checkpoint(self, step: int) -> None: ...


RunRecorder = Recorder | QuietRecorder
