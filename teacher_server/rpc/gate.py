"""Whether the server takes calls, what it answers them from, and how many are in flight.

One gate for every way in (gRPC, HTTP), so that all share the queue, the counters and the drain.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lectern_common.errors import LecternError, TeacherError, TeacherUnavailable
from lectern_common.logs import get_logger
from lectern_common.words import inert_name
from teacher_server.engine.seam import Engine, ScoringRequest
from teacher_server.rpc.limits import Limits
from teacher_server.scheduling.accounting import Accounting
from teacher_server.scheduling.batcher import Batcher

log = get_logger()

# A client that asks the same wrong thing over and over would fill the disk with log lines.
_REPEAT_SECONDS = 60.0
_MAX_KINDS = 1000
_DETAIL_CHARACTERS = 500


@dataclass(frozen=True)
class Serving:
    """What a loaded server answers from. `utilization` is the device's: see GpuUtilization."""

    engine: Engine
    batcher: Batcher
    accounting: Accounting
    limits: Limits
    utilization: Callable[[], float | None] = lambda: None

    def account(self, scoring: ScoringRequest, sent_bytes: int, queue_seconds: float) -> None:
        """Counts a request that was answered in full."""
        self.accounting.answered(scoring.run_id, sent_bytes, queue_seconds)
        log.debug(
            "answered",
            run_id=scoring.run_id,
            request_id=scoring.request_id,
            tokens=scoring.num_tokens,
            sent_bytes=sent_bytes,
            queue_seconds=round(queue_seconds, 4),
        )


class Gate:
    """Takes calls between `open` and `close`; at any other time they get TeacherUnavailable.

    Args:
        clock: returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.serving: Serving | None = None
        self._closed_because = "the model is still loading"
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._clock = clock
        self._said: dict[tuple[str, str], tuple[float, int]] = {}  # (when, left out since)

    def open(self, serving: Serving) -> None:
        """Takes calls from now on."""
        self.serving = serving

    def close(self, because: str) -> None:
        """Takes no new calls; calls in flight continue."""
        self.serving = None
        self._closed_because = because

    @property
    def is_idle(self) -> bool:
        """Whether no call is in flight."""
        return self._idle.is_set()

    async def wait_until_idle(self) -> None:
        """Returns when no call is in flight."""
        await self._idle.wait()

    @contextlib.contextmanager
    def in_flight(self) -> Iterator[None]:
        """Counts a call as in flight until its answer, or its error, is on its way."""
        self._calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._calls -= 1
            if self._calls == 0:
                self._idle.set()

    @contextlib.contextmanager
    def answering(self, call: str, is_gone: Callable[[], bool]) -> Iterator[Serving]:
        """Yields what to answer a call from; counts and logs an error of it, and raises it again.

        Args:
            call: its name, for the log.
            is_gone: whether the client went away, so that an error is only that.

        Raises:
            TeacherUnavailable: the server takes no calls now.
        """
        serving = self.serving
        try:
            if serving is None:
                raise TeacherUnavailable(self._closed_because)
            yield serving
        except LecternError as error:
            if serving is not None:
                broke = isinstance(error, TeacherError)
                serving.accounting.failed() if broke else serving.accounting.refused()
            self._say_refused(call, error)
            raise
        except Exception:
            if is_gone():  # in the middle of a message
                log.info("client gone", call=call)
                raise
            if serving is not None:
                serving.accounting.failed()
            log.exception("failed", call=call)
            raise

    def _say_refused(self, call: str, error: LecternError) -> None:
        """Logs a refusal; of one call and reason at most once a minute, with how many since."""
        if error.retryable:  # a full queue refuses thousands of calls
            log.debug(
                "refused", call=call, reason=error.reason, detail=str(error)[:_DETAIL_CHARACTERS]
            )
            return
        now, kind = self._clock(), (call, error.reason)
        since, left_out = self._said.get(kind, (float("-inf"), 0))
        if now - since < _REPEAT_SECONDS:
            self._said[kind] = since, left_out + 1
            return
        if len(self._said) > _MAX_KINDS:
            self._said.clear()
        self._said[kind] = now, 0
        more = {"more_since_the_last_line": left_out} if left_out else {}
        detail = inert_name(str(error)[:_DETAIL_CHARACTERS])
        log.warning("refused", call=call, reason=error.reason, detail=detail, **more)
