"""Goes on asking a control plane that is away for a while, such as during its restart.

Also follows its event streams over such a time: each event comes once.
"""

import json
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from lectern_common.errors import LecternError

OUTAGE_SECONDS = 600.0
PAUSE_SECONDS = 1.0

_Answer = TypeVar("_Answer")


class ControlPlaneUnavailable(LecternError):
    """The control plane does not answer, or something else answers at its address."""

    reason = "control_plane_unavailable"
    exit_code = 7
    retryable = True


class Reconnecting:
    """Repeats calls that only read, while the control plane does not answer.

    A control plane that has never answered is not waited for: its address may be wrong.

    Args:
        say: is told, once each, that it is away and for how long that is borne, and that it is
            back.
        limit_seconds: how long it may be away.
        has_answered: it has answered a call that was made elsewhere.
        sleep: of `time`.
        monotonic: of `time`.
    """

    def __init__(
        self,
        say: Callable[[str], None] = lambda text: None,
        limit_seconds: float = OUTAGE_SECONDS,
        *,
        has_answered: bool = False,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say = say
        self._limit = limit_seconds
        self._has_answered = has_answered
        self._sleep = sleep
        self._monotonic = monotonic

    def ask(self, call: Callable[[], _Answer]) -> _Answer:
        """Returns what the call returns, as soon as it does.

        Raises:
            ControlPlaneUnavailable: no answer for longer than the limit, or never one before.
            LecternError: any other error of the call, at once.
        """
        away_since: float | None = None
        while True:
            try:
                answer = call()
            except LecternError as error:
                if not (error.retryable and self._has_answered):
                    raise
                now = self._monotonic()
                if away_since is None:
                    away_since = now
                    self._say(f"{error}; trying again for up to {self._limit:g} s")
                if now - away_since >= self._limit:
                    raise ControlPlaneUnavailable(
                        f"no answer for {self._limit:g} s, the longest that is waited: "
                        f"{error}. The runs are not affected; watch them again later"
                    ) from None
                self._sleep(PAUSE_SECONDS)
            else:
                self._has_answered = True
                if away_since is not None:
                    self._say("the control plane answers again")
                return answer


@dataclass(frozen=True)
class ServerEvent:
    """One server-sent event; without a `kind` it only says from where to go on."""

    kind: str
    data: dict[str, Any]
    id: str | None


def events_of(lines: Iterable[str]) -> Generator[ServerEvent]:
    """Yields the events of a stream's lines.

    Raises:
        ControlPlaneUnavailable: the data of an event is not a JSON object.
    """
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
            continue
        if "id" in fields or "event" in fields:
            try:
                data = json.loads(fields.get("data", "{}"))
                is_object = isinstance(data, dict)
            except ValueError:
                is_object = False
            if not is_object:
                raise ControlPlaneUnavailable("the control plane sent an event that is not JSON")
            yield ServerEvent(fields.get("event", ""), data, fields.get("id"))
        fields = {}


def followed(
    opened: Callable[[str | None], Generator[ServerEvent]], outlasting: Reconnecting
) -> Generator[ServerEvent]:
    """Yields the events of a stream without an end, which is opened again whenever it breaks off.

    Args:
        opened: returns the events after the one with an id; None means from the beginning.
        outlasting: decides for how long the control plane may be away.

    Raises:
        LecternError: as `Reconnecting.ask` does.
    """
    events: Generator[ServerEvent] | None = None
    last: str | None = None

    def next_event() -> ServerEvent:
        nonlocal events
        try:
            events = events or opened(last)
            return next(events)
        except StopIteration:
            events = None
            raise ControlPlaneUnavailable("the control plane ended the stream") from None
        except LecternError:
            events = None
            raise

    try:
        while True:
            event = outlasting.ask(next_event)
            last = event.id or last
            if event.kind:
                yield event
    finally:
        if events is not None:
            events.close()
