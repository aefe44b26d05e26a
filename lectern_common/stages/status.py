"""The status that the process of a task writes: its state, how far it is, and what it has said."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter

from lectern_common.errors import CorruptData
from lectern_common.run.processes import Identity
from lectern_common.run.status import RunState
from lectern_common.run.untrusted import (
    Count,
    Number,
    Pid,
    Text,
    UnixSeconds,
    Word,
    cut,
    finite,
    parse_versioned,
)

TASK_STATUS_VERSION = 1
MAX_SAID = 20

Report = Callable[[str, int, int], None]
"""Called by a stage with (what it counts, how many are done, of how many), as often as it likes.

With 0 of 0, the text is a sentence for people, such as "the record takes about 3 GB": all that is
said so is shown in order. `done` may go back when something else is counted.
"""


@dataclass(frozen=True)
class TaskStatus:
    """What the process of a task last reported. Times are Unix seconds.

    A task has the states of a run (run/status.py), except WAITING_FOR_TEACHER.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True)

    task_id: Text
    stage: Word
    state: RunState
    since: UnixSeconds
    heartbeat: UnixSeconds
    pid: Pid
    boot_id: Word | None = None
    start_ticks: Count | None = None
    attempt: Count | None = None  # of the control plane that started it; None: by hand
    reason: Word | None = None  # machine-readable word, as in errors.py; also "stopped"
    message: Text | None = None  # one sentence for a person
    field: Text | None = None  # of the request, if that is what is wrong
    doing: Text | None = None  # what is counted, such as "problems"
    done: Count = 0
    of: Count = 0
    per_second: Number | None = None  # how fast it goes lately; None if not yet known
    said: Annotated[list[Text], Field(max_length=MAX_SAID)] = dataclasses.field(
        default_factory=list
    )
    num_said: Count = 0  # sentences so far; `said` has the last of them
    version: int = TASK_STATUS_VERSION

    @property
    def process(self) -> Identity | None:
        """The process that wrote it; None if the system has not shown it which one it is."""
        if self.boot_id is None or self.start_ticks is None:
            return None
        return Identity(self.pid, self.boot_id, self.start_ticks)

    @property
    def timeless(self) -> "TaskStatus":
        """The status without what changes with time alone."""
        return replace(self, heartbeat=0, per_second=None)

    @property
    def seconds_left(self) -> float | None:
        """How long the rest of what is counted takes at its rate; None if that is not known."""
        if not self.per_second or self.of < self.done:
            return None
        return (self.of - self.done) / self.per_second

    def said_after(self, number: int) -> Sequence[str]:
        """Returns the sentences after the first `number`, as far as they are still in here."""
        new = self.num_said - number
        return self.said[-new:] if new > 0 else []


_STATUS = TypeAdapter(TaskStatus)


def bounded(status: TaskStatus) -> TaskStatus:
    """Returns the status as every reader accepts it: texts cut, numbers finite."""
    return replace(
        status,
        reason=None if status.reason is None else cut(status.reason, 100),
        message=None if status.message is None else cut(status.message),
        field=None if status.field is None else cut(status.field),
        doing=None if status.doing is None else cut(status.doing),
        per_second=finite(status.per_second),
        said=[cut(text) for text in status.said[-MAX_SAID:]],
    )


def values_of(status: TaskStatus) -> dict[str, Any]:
    """Returns the status as JSON values."""
    return {**asdict(status), "state": str(status.state)}


def stored_status(values: Any) -> TaskStatus | None:
    """Returns the status in a stored row; None if that is damaged."""
    try:
        return parse_status(json.dumps(values).encode())
    except (CorruptData, TypeError, ValueError):
        return None


def parse_status(data: bytes) -> TaskStatus:
    """Returns the status that JSON bytes hold.

    Raises:
        CorruptData: it is not a TaskStatus; the message names the fields, without their values.
    """
    return parse_versioned(_STATUS, data, [TASK_STATUS_VERSION], "task")
