"""Teachers as the control plane sees them: checked before a run is accepted, shown while it goes.

Nothing here waits on the event loop: probes run in threads, each with a deadline.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from control_plane.devices import Devices
from control_plane.views import RepresentationView, TeacherView
from lectern_common.errors import InvalidSpec, LecternError, Unauthenticated
from lectern_common.preflight import read_token, require_startable
from lectern_common.roots import Roots
from lectern_common.run_spec import RunSpec
from lectern_common.teacher_channel import TeacherChannel
from protos import teacher_pb2

PROBE_SECONDS = 2.0
FRESH_SECONDS = 1.0
MAX_TEACHERS = 32
MAX_CHECKS_AT_ONCE = 4
_NAMES = {
    teacher_pb2.REPRESENTATION_DENSE: "dense",
    teacher_pb2.REPRESENTATION_HIDDEN: "hidden",
    teacher_pb2.REPRESENTATION_TOP_K: "top_k",
    teacher_pb2.REPRESENTATION_SAMPLED: "sampled",
}


class StartChecks:
    """What is asked before a run is accepted. Keeps few checks going at one time."""

    def __init__(self, roots: Roots, devices: Devices) -> None:
        self._roots = roots
        self._devices = devices
        self._room = asyncio.Semaphore(MAX_CHECKS_AT_ONCE)

    async def require_startable(self, spec: RunSpec) -> None:
        """Returns where nothing is known to keep the run from working.

        Raises:
            LecternError: the first check that fails.
        """
        self._devices.require_has(spec)
        async with self._room:
            try:
                await asyncio.to_thread(require_startable, spec, self._roots)
            except Unauthenticated as error:
                # Towards the client it is the spec that is wrong, not the client's own token.
                why = f"the teacher refuses the run: {error}"
                raise InvalidSpec([("teacher.token_file", why)]) from None


@dataclass
class _Teacher:
    """One address; a token file under the secrets root comes with it."""

    channel: TeacherChannel
    token_file: str | None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    asked_at: float = float("-inf")
    seen_at: float | None = None
    problem: str | None = "not asked yet"
    facts: dict[str, Any] = field(default_factory=dict)


class TeacherMonitor:
    """Asks teachers how they are, at most once a second each.

    Args:
        roots: for the secrets root.
        configured: addresses given at the start, each with its token file or None.
        clock: Unix seconds.
        monotonic: seconds, for the age of an answer.
    """

    def __init__(
        self,
        roots: Roots,
        configured: Mapping[str, str | None],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._roots = roots
        self._configured = dict(configured)
        self._clock = clock
        self._monotonic = monotonic
        self._teachers: dict[str, _Teacher] = {}

    async def views(
        self, asked_by: Mapping[str, tuple[str | None, Collection[str]]]
    ) -> list[TeacherView]:
        """Returns every teacher: configured ones first, then those of runs.

        Args:
            asked_by: address to (token file, runs at work that ask it).
        """
        wanted = {**{address: entry[0] for address, entry in asked_by.items()}, **self._configured}
        ordered = [
            *self._configured,
            *(address for address in asked_by if address not in self._configured),
        ]
        ordered = ordered[:MAX_TEACHERS]
        for address in self._teachers.keys() - set(ordered):
            self._teachers.pop(address).channel.close()
        await asyncio.gather(*(self._refresh(address, wanted[address]) for address in ordered))
        return [
            self._view(address, asked_by.get(address, (None, ()))[1])
            for address in ordered
            if address in self._teachers
        ]

    def close(self) -> None:
        for teacher in self._teachers.values():
            teacher.channel.close()
        self._teachers.clear()

    async def _refresh(self, address: str, token_file: str | None) -> None:
        teacher = self._teachers.get(address)
        if teacher is None or teacher.token_file != token_file:
            try:
                token = await asyncio.to_thread(read_token, self._roots, token_file)
                problem = "not asked yet"
            except LecternError as error:
                token, problem = None, str(error)
            before = self._teachers.get(address)
            if before is None or before.token_file != token_file:
                if before is not None:
                    before.channel.close()
                before = _Teacher(TeacherChannel(address, token), token_file, problem=problem)
                self._teachers[address] = before
            teacher = before  # perhaps made by another request while the token was read
        async with teacher.lock:
            if self._monotonic() - teacher.asked_at < FRESH_SECONDS:
                return
            try:
                teacher.facts = await asyncio.to_thread(_facts, teacher.channel)
                teacher.seen_at, teacher.problem = self._clock(), None
            except LecternError as error:
                teacher.problem = str(error)
            except ValueError:  # another request has closed the channel: nobody asks it any more
                teacher.problem = "no run asks this teacher any more"
            teacher.asked_at = self._monotonic()

    def _view(self, address: str, runs: Collection[str]) -> TeacherView:
        teacher = self._teachers[address]
        return TeacherView(
            address=address,
            reachable=teacher.problem is None,
            problem=teacher.problem,
            seen_at=teacher.seen_at,
            configured=address in self._configured,
            runs=sorted(runs),
            **teacher.facts,
        )


def _facts(channel: TeacherChannel) -> dict[str, Any]:
    """Returns what a teacher says of itself. Raises LecternError."""
    model = channel.get_model(PROBE_SECONDS)
    stats = channel.get_stats(PROBE_SECONDS)
    has_utilization = stats.HasField("device_utilization")
    return {
        "model": model.model_id,
        "engine": model.engine,
        "num_parameters": model.num_parameters,
        "fingerprint": model.fingerprint,
        "weights_sha256": model.weights_sha256,
        "device": model.device,
        "device_utilization": stats.device_utilization if has_utilization else None,
        "dtype": model.dtype,
        "representations": [
            RepresentationView(
                name=_NAMES.get(offer.kind, str(offer.kind)),
                offered=offer.offered,
                reason=offer.reason,
            )
            for offer in model.representations
        ],
        "uptime_seconds": stats.uptime_seconds,
        "tokens_per_second": stats.tokens_per_second,
        "scored_tokens": stats.scored_tokens,
        "sent_bytes": stats.sent_bytes,
        "queued_requests": stats.queued_requests,
        "running_requests": stats.running_requests,
        "max_queued_requests": model.limits.max_queued_requests,
        "refused_requests": stats.refused_requests,
        "failed_requests": stats.failed_requests,
    }
