"""The state of each teacher, as the page shows it, and which runs use it.

Probes run in threads of their own, each with a deadline: teachers that hang block neither the event
loop nor the reconcile loop.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from control_plane.teachers.secrets import OPTIONS
from control_plane.views.teachers import TeacherView
from lectern_common.callers import is_loopback
from lectern_common.errors import LecternError, Unauthenticated
from lectern_common.roots import Roots
from lectern_common.teacher.address import DNS_SCHEME
from lectern_common.teacher.channel import TeacherChannel
from lectern_common.teacher.figures import teacher_figures
from lectern_common.teacher.secrets import SecretFiles, read_secrets
from protos import teacher_pb2

PROBE_SECONDS = 2.0
FRESH_SECONDS = 1.0
MAX_TEACHERS = 32
# A server that no active run uses is remembered so long after it was asked about runs that ended.
REMEMBERED_SECONDS = 60.0
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Account:
    """What servers have done for some runs since they started.

    Attributes:
        runs: how many of them the servers know; those that were idle longest are forgotten.
        asked_tokens: tokens of all sequences that they asked for; None if a server does not say.
        computed_tokens: tokens computed for them; a forward shared with others counts in part.
        asked_sequences: sequences that they asked for.
        computed_sequences: sequences that were computed for them first.
    """

    runs: int
    asked_tokens: int | None
    computed_tokens: int
    asked_sequences: int
    computed_sequences: int


@dataclass
class _Teacher:
    """One server, and the channel to it, which is None until its secrets have been read."""

    channel: TeacherChannel | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    asked_at: float = float("-inf")
    seen_at: float | None = None
    problem: str | None = "not probed yet"
    facts: dict[str, Any] = field(default_factory=dict)
    accounts: dict[str, teacher_pb2.RunStats] = field(default_factory=dict)
    remembered_until: float = float("-inf")

    def close(self) -> None:
        if self.channel is not None:
            self.channel.close()


class TeacherMonitor:
    """Probes teachers, at most once a second each.

    Args:
        roots: for the secrets root.
        configured: the configured servers, each with its secrets. Others are probed without any.
        has_gpu: this machine has a GPU.
        clock: Unix seconds.
        monotonic: monotonic seconds, for the age of an answer.
    """

    def __init__(
        self,
        roots: Roots,
        configured: Mapping[str, SecretFiles],
        has_gpu: bool = False,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._roots = roots
        self._configured = dict(configured)
        self._has_gpu = has_gpu
        self._clock = clock
        self._monotonic = monotonic
        self._teachers: dict[str, _Teacher] = {}
        self._pool = ThreadPoolExecutor(MAX_TEACHERS, thread_name_prefix="teacher")

    async def views(self, asked_by: Mapping[str, Collection[str]]) -> list[TeacherView]:
        """Returns every teacher server: configured ones first, then those of runs.

        Args:
            asked_by: address of a server -> the active runs that use it.
        """
        ordered = [
            *self._configured,
            *(address for address in asked_by if address not in self._configured),
        ]
        ordered = ordered[:MAX_TEACHERS]
        for address in self._teachers.keys() - set(ordered):
            if self._teachers[address].remembered_until <= self._monotonic():
                self._teachers.pop(address).close()
        await asyncio.gather(*(self._refresh(address) for address in ordered))
        return [
            self._view(address, asked_by.get(address, ()))
            for address in ordered
            if address in self._teachers
        ]

    async def account(self, addresses: Collection[str], runs: Collection[str]) -> Account | str:
        """Returns what the servers have done for the runs, or why that is not known.

        It is known only if all of them answer.

        Args:
            addresses: of servers.
            runs: run ids.
        """
        if len(addresses) > MAX_TEACHERS:
            return f"{len(addresses)} teacher servers; at most {MAX_TEACHERS} are asked"
        if several := [one for one in addresses if one.startswith(DNS_SCHEME)]:
            return f"{several[0]} names several servers, which cannot be asked one by one"
        until = self._monotonic() + REMEMBERED_SECONDS
        for address in addresses:
            self._teachers.setdefault(address, _Teacher()).remembered_until = until
        await asyncio.gather(*(self._refresh(address) for address in addresses))
        found: list[teacher_pb2.RunStats] = []
        for address in addresses:
            teacher = self._teachers.get(address)
            if teacher is None or teacher.problem is not None:
                why = "not asked" if teacher is None else teacher.problem
                return f"the teacher at {address} does not answer: {why}"
            found += [teacher.accounts[run] for run in runs if run in teacher.accounts]
        says = all(one.asked_tokens or not one.cache_hits + one.cache_misses for one in found)
        misses = sum(one.cache_misses for one in found)
        return Account(
            runs=len({one.run_id for one in found}),
            asked_tokens=sum(one.asked_tokens for one in found) if says else None,
            computed_tokens=sum(one.tokens for one in found),
            asked_sequences=sum(one.cache_hits for one in found) + misses,
            computed_sequences=misses,
        )

    async def reachable(self) -> dict[str, bool]:
        """Returns for each configured server whether it answers."""
        addresses = list(self._configured)[:MAX_TEACHERS]
        await asyncio.gather(*(self._refresh(address) for address in addresses))
        return {
            address: self._teachers[address].problem is None
            for address in addresses
            if address in self._teachers
        }

    def close(self) -> None:
        for teacher in self._teachers.values():
            teacher.close()
        self._teachers.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, call: Callable[[], _Answer]) -> _Answer:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    async def _refresh(self, address: str) -> None:
        if address not in self._teachers:
            self._teachers[address] = _Teacher()
        teacher = self._teachers[address]
        async with teacher.lock:
            if self._monotonic() - teacher.asked_at < FRESH_SECONDS:
                return
            try:
                if teacher.channel is None:
                    files = self._configured.get(address, SecretFiles())
                    secrets = await self._in_thread(lambda: read_secrets(self._roots, files))
                    if self._teachers.get(address) is not teacher:
                        return  # another request has dropped it: nothing would close the channel
                    teacher.channel = TeacherChannel(address, secrets.token, secrets.tls)
                channel = teacher.channel
                teacher.facts, teacher.accounts = await self._in_thread(lambda: _facts(channel))
                teacher.seen_at, teacher.problem = self._clock(), None
            except Unauthenticated as error:
                teacher.problem = str(error) if address in self._configured else _not_known(address)
            except LecternError as error:
                teacher.problem = str(error)
            except ValueError:  # another request has closed the channel
                teacher.problem = "no run uses this teacher any more"
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
            warning=_warning(address, teacher.facts, self._has_gpu),
            **teacher.facts,
        )


def _not_known(address: str) -> str:
    options = " and ".join((OPTIONS["token_file"], OPTIONS["tls_ca_file"]))
    return (
        f"it requires a token or TLS; start the control plane with --teacher {address}, {options}"
    )


def _facts(channel: TeacherChannel) -> tuple[dict[str, Any], dict[str, teacher_pb2.RunStats]]:
    """Returns a teacher's model and statistics, and its accounts by run. Raises LecternError."""
    model, stats = channel.get_model(PROBE_SECONDS), channel.get_stats(PROBE_SECONDS)
    return teacher_figures(model, stats), {run.run_id: run for run in stats.runs}


def _warning(address: str, facts: Mapping[str, Any], has_gpu: bool) -> str | None:
    """Returns a warning about a teacher on the CPU of a machine with a GPU, else None.

    A large teacher on the CPU seems to work, but is hundreds of times too slow.
    """
    host = address.rpartition(":")[0].strip("[]")
    on_cpu = str(facts.get("device", "")).startswith("cpu") and facts.get("engine") != "fixture"
    if not (on_cpu and has_gpu and is_loopback(host)):
        return None
    return "It runs on the CPU while this machine has a GPU; start it with --device cuda"
