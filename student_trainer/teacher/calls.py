"""Calls to the servers of one teacher; a failed call is retried as a whole.

gRPC does not retry a stream that broke after its first message, so the whole request is made again:
to the next server if there are several (`replicas.py`), then for as long as `outage.py` allows.
Every attempt has a deadline. A reply that was damaged in transit is requested again at once.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc

from lectern_common.logs import get_logger
from lectern_common.teacher.channel import TeacherChannel
from lectern_common.teacher.replicas import TeacherReplicas
from protos import teacher_pb2
from student_trainer.stop import SLICE_SECONDS, Stop, StopRequested
from student_trainer.teacher.outage import Outage
from student_trainer.teacher.reply import DamagedReply

_log = get_logger()
_Answer = TypeVar("_Answer")

_SHORT_CALL_SECONDS = 10.0
# Damage this often in a row is not an accident of the network.
MAX_DAMAGED_REPLIES = 3


class TeacherCalls:
    """Makes calls to one teacher, with retries and cancellation. Safe to use from any thread.

    Args:
        replicas: the servers to ask; closed with this object.
        deadline_seconds: longest wait for one answer.
        outage_budget_seconds: see outage.py.
        stop: ends every wait and every call.
        on_outage: see outage.py.
    """

    def __init__(
        self,
        replicas: TeacherReplicas,
        *,
        deadline_seconds: float,
        outage_budget_seconds: float,
        stop: Stop,
        on_outage: Callable[[str | None], None] = lambda _: None,
    ) -> None:
        self._replicas = replicas
        self._deadline_seconds = deadline_seconds
        self._stop = stop
        self._ended = Stop()
        self._outage = Outage(outage_budget_seconds, self._ended, on_outage)
        self._lock = threading.Lock()
        self._calls: set[Any] = set()
        self._closed = threading.Event()
        self._watch = threading.Thread(target=self._cancel_on_stop, daemon=True, name="stop-watch")
        self._watch.start()

    @property
    def address(self) -> str:
        """Where the servers are, as lectern_common/teacher/address.py says."""
        return self._replicas.address

    @property
    def away_seconds(self) -> float:
        """Seconds that no server could be reached so far, over all outages."""
        return self._outage.away_seconds

    def close(self) -> None:
        """Cancels the calls in flight and closes the connections."""
        self._closed.set()
        self.cancel()
        self._watch.join()
        self._replicas.close()

    def cancel(self) -> None:
        """Ends the calls in flight and all later ones with StopRequested; cannot be undone."""
        self._ended.request()
        with self._lock:
            calls = list(self._calls)
        for call in calls:
            call.cancel()

    def model(self) -> teacher_pb2.Model:
        """Returns the teacher's description, equal on all servers. Raises LecternError."""
        return self._outage.until_answered(
            lambda left: self._replicas.get_model(_within(_SHORT_CALL_SECONDS, left))
        )

    def tokenizer_map(self) -> dict[str, int]:
        """Returns the teacher's token-to-id map. Raises LecternError."""
        return self._outage.until_answered(
            lambda left: self._replicas.get_tokenizer_map(_within(self._deadline_seconds, left))
        )

    def answered(self, ask: Callable[[TeacherChannel, float | None], _Answer]) -> _Answer:
        """Returns what `ask` returns for one server, with retries as the module's docstring says.

        Args:
            ask: makes the whole request once, to one server; the seconds are as in outage.py.

        Raises:
            DamagedReply: MAX_DAMAGED_REPLIES replies in a row were damaged.
            LecternError: as TargetsProvider.score.
        """

        def ask_in_turn(left: float | None) -> _Answer:
            return self._replicas.first_answer(lambda channel: ask(channel, left))

        for _ in range(MAX_DAMAGED_REPLIES - 1):
            try:
                return self._outage.until_answered(ask_in_turn)
            except DamagedReply as error:
                _log.warning("reply_damaged", error=str(error))
        return self._outage.until_answered(ask_in_turn)

    @contextmanager
    def replies(
        self, channel: TeacherChannel, method: Any, request: Any, left: float | None
    ) -> Iterator[Iterator[Any]]:
        """Yields the replies of one attempt; in the block, gRPC errors become those of errors.py.

        The first attempt fails at once if there is no connection, so that an outage is noticed;
        later ones wait for a connection, unless another server may be back first.
        """
        self._ended.check()
        call = method(
            request,
            timeout=_within(self._deadline_seconds, left),
            metadata=channel.metadata,
            wait_for_ready=left is not None and self._replicas.is_one,
        )
        with self._lock:
            self._calls.add(call)
        try:
            self._ended.check()
            yield call
        except grpc.RpcError as error:
            if self._ended.requested:
                raise StopRequested from None
            raise channel.translated(error) from None
        finally:
            call.cancel()
            with self._lock:
                self._calls.discard(call)

    def _cancel_on_stop(self) -> None:
        while not self._closed.wait(SLICE_SECONDS):
            if self._stop.requested:
                self.cancel()
                return


def _within(seconds: float, left: float | None) -> float:
    return seconds if left is None else max(min(seconds, left), 0.1)
