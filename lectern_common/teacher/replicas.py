"""The servers behind one `teacher.address`, asked in turn; all must serve the same model.

Any of them can answer any request, so a failing server is skipped:

    TeacherUnavailable, Overloaded   the next server is asked at once; raised if all of them fail
    any other error                  raised at once: every server would fail the same way, or they
                                     differ in a way that no run may continue with

A server that failed is asked last for a while, so that one that hangs costs few deadlines.
"""

import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from lectern_common.errors import (
    Incompatible,
    LecternError,
    Overloaded,
    TeacherUnavailable,
    WrongModel,
)
from lectern_common.logs import get_logger
from lectern_common.teacher.address import DNS_SCHEME, replica_addresses
from lectern_common.teacher.channel import TeacherChannel
from lectern_common.teacher.identity import layout_of_bytes, ranks_of
from lectern_common.teacher.secrets import Secrets
from lectern_common.teacher.tls import ClientTls
from lectern_common.words import address_of, host_and_port
from protos import teacher_pb2

FIRST_REST_SECONDS = 1.0
LONGEST_REST_SECONDS = 60.0
# For a dns:/// name gRPC picks the server, so after a failure the call is repeated.
DNS_ATTEMPTS = 3

_log = get_logger()
_Answer = TypeVar("_Answer")


class TeacherReplicas:
    """Connections to all servers of one address. Use as a context manager, or call close().

    Args:
        address: see address.py.
        token: sent with every call.
        tls: None means plaintext.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        address: str,
        token: str | None = None,
        tls: ClientTls | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address = address
        self._secrets = Secrets(token, tls)
        self._clock = clock
        self._channels = [TeacherChannel(one, token, tls) for one in replica_addresses(address)]
        self._rests = {channel.address: _Rest() for channel in self._channels}
        self._next = 0
        self._lock = threading.Lock()

    def __enter__(self) -> "TeacherReplicas":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for channel in self._channels:
            channel.close()

    @property
    def is_one(self) -> bool:
        """True for a single server: then its connection is the one to wait for."""
        return len(self._channels) == 1 and not self.address.startswith(DNS_SCHEME)

    def first_answer(self, ask: Callable[[TeacherChannel], _Answer]) -> _Answer:
        """Returns the answer of the next server in turn, or of a later one if that fails.

        Raises:
            TeacherUnavailable: none of them answers.
            Overloaded: those that answer are full; has the shortest of their waits.
            LecternError: any other error of `ask`.
        """
        away: list[TeacherUnavailable] = []
        full: list[Overloaded] = []
        for channel in self._in_turn():
            try:
                answer = ask(channel)
            except TeacherUnavailable as error:
                away.append(error)
                self._failed(channel, error)
            except Overloaded as error:
                full.append(error)
            except WrongModel as error:
                raise WrongModel(
                    f"the teacher at {channel.address} is not the one that the run learns from: "
                    f"{error}. Serve the run's model there again, or set teacher.address to a "
                    "server that has it, and resume the run"
                ) from None
            else:
                with self._lock:
                    self._rests[channel.address] = _Rest()
                return answer
        if full:
            raise min(full, key=lambda error: error.retry_after_seconds)
        raise _all_away(away)

    def get_model(self, timeout_seconds: float = 10.0) -> teacher_pb2.Model:
        """Returns the model that all servers share; logs the servers that do not answer."""
        models, away = self.get_models(timeout_seconds)
        for error in away:
            _log.warning("teacher_replica_away", error=str(error))
        return next(iter(models.values()))

    def get_models(
        self, timeout_seconds: float
    ) -> tuple[dict[str, teacher_pb2.Model], list[TeacherUnavailable]]:
        """Returns address -> model for every server that answers, and the errors of the others.

        There is at least one; all have the same fingerprint, and the same layout if it matters.

        Raises:
            WrongModel: two of them serve different models; names both.
            Incompatible: they serve the same model in mode "independent", shared among different
                numbers of ranks.
            TeacherUnavailable: none of them answers.
            LecternError: any other error of one of them.
        """
        models, away = self._ask_all(lambda channel: channel.get_model(timeout_seconds))
        (first, model), *others = models.items()
        for address, other in others:
            if other.fingerprint != model.fingerprint:
                raise WrongModel(
                    f"the servers of teacher.address serve different models: {first} serves "
                    f"{_named(model)}, {address} serves {_named(other)}; start the same model on "
                    "all of them"
                )
            if layout_of_bytes(other) != layout_of_bytes(model):
                raise Incompatible(
                    "the servers of teacher.address share their model among different numbers of "
                    f"ranks: {first} has --tensor-parallel {ranks_of(model)}, {address} has "
                    f"{ranks_of(other)}; in --mode independent every answer must be the same to "
                    "the bit: start all with the same number, or all with --mode throughput"
                )
        return models, away

    def _ask_all(
        self, ask: Callable[[TeacherChannel], _Answer]
    ) -> tuple[dict[str, _Answer], list[TeacherUnavailable]]:
        """Asks all servers at once; returns their answers and the errors of those away."""
        channels, opened = self._every_server()
        try:
            with ThreadPoolExecutor(len(channels)) as pool:
                asked = list(pool.map(lambda channel: _outcome(ask, channel), channels))
        finally:
            for channel in opened:
                channel.close()
        answers: dict[str, _Answer] = {}
        away: list[TeacherUnavailable] = []
        for channel, (answer, error) in zip(channels, asked, strict=True):
            if error is None:
                answers[channel.address] = answer[0]
            elif isinstance(error, TeacherUnavailable):
                away.append(error)
            else:
                raise error
        if not answers:
            raise _all_away(away)
        return answers, away

    def get_tokenizer_map(self, timeout_seconds: float = 60.0) -> dict[str, int]:
        """Returns token -> id; empty if the model has no tokenizer. Raises LecternError."""
        return self.first_answer(lambda channel: channel.get_tokenizer_map(timeout_seconds))

    def _in_turn(self) -> list[TeacherChannel]:
        """Returns the servers in the order to ask: round robin, recently failed ones last."""
        if self.address.startswith(DNS_SCHEME):
            return self._channels * DNS_ATTEMPTS
        with self._lock:
            start = self._next
            self._next = (start + 1) % len(self._channels)
            now = self._clock()
            order = self._channels[start:] + self._channels[:start]
            return sorted(order, key=lambda channel: self._rests[channel.address].until > now)

    def _failed(self, channel: TeacherChannel, error: TeacherUnavailable) -> None:
        with self._lock:
            rest = self._rests[channel.address]
            if rest.seconds == 0 and not self.is_one:
                _log.warning("teacher_replica_away", error=str(error))
            seconds = min(max(FIRST_REST_SECONDS, 2 * rest.seconds), LONGEST_REST_SECONDS)
            self._rests[channel.address] = _Rest(seconds, self._clock() + seconds)

    def _every_server(self) -> tuple[Sequence[TeacherChannel], Sequence[TeacherChannel]]:
        """Returns a channel to each server, and which of them to close afterwards.

        The one channel of a dns:/// name goes to whichever server gRPC picks.
        """
        if not self.address.startswith(DNS_SCHEME):
            return self._channels, ()
        name, port = host_and_port(self.address.removeprefix(DNS_SCHEME), "teacher.address")
        opened = [
            TeacherChannel(address, self._secrets.token, self._secrets.tls, name)
            for address in resolved(name, port)
        ]
        return opened, opened


@dataclass(frozen=True)
class _Rest:
    """A failed server is asked last until `until`, `seconds` after it failed."""

    seconds: float = 0.0
    until: float = float("-inf")


def resolved(name: str, port: int) -> list[str]:
    """Returns host:port of every address that a name resolves to.

    Raises:
        TeacherUnavailable: it does not resolve now.
    """
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise TeacherUnavailable(
            f"no teacher at {DNS_SCHEME}{name}:{port} ({error.strerror or error}); set "
            "teacher.address to a name that resolves"
        ) from None
    hosts = dict.fromkeys(str(entry[4][0]) for entry in found)
    return [address_of(host, port) for host in hosts]


def _outcome(
    ask: Callable[[TeacherChannel], _Answer], channel: TeacherChannel
) -> tuple[list[_Answer], LecternError | None]:
    try:
        return [ask(channel)], None
    except LecternError as error:
        return [], error


def _all_away(away: Sequence[TeacherUnavailable]) -> TeacherUnavailable:
    reasons = dict.fromkeys(str(error) for error in away)
    if len(reasons) == 1:
        return TeacherUnavailable(next(iter(reasons)))
    return TeacherUnavailable(f"no server of the teacher answers: {'; '.join(reasons)}")


def _named(model: teacher_pb2.Model) -> str:
    return f"{model.model_id} with fingerprint {model.fingerprint[:12]}"
