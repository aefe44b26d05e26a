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
from control_plane.views import TeacherView
from lectern_common.callers import is_loopback
from lectern_common.errors import LecternError, Unauthenticated
from lectern_common.roots import Roots
from lectern_common.teacher.channel import TeacherChannel
from lectern_common.teacher.figures import teacher_figures
from lectern_common.teacher.secrets import SecretFiles, read_secrets

PROBE_SECONDS = 2.0
FRESH_SECONDS = 1.0
MAX_TEACHERS = 32
_Answer = TypeVar("_Answer")


@dataclass
class _Teacher:
    """One server, and the channel to it, which is None until its secrets have been read."""

    channel: TeacherChannel | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    asked_at: float = float("-inf")
    seen_at: float | None = None
    problem: str | None = "not probed yet"
    facts: dict[str, Any] = field(default_factory=dict)

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
            self._teachers.pop(address).close()
        await asyncio.gather(*(self._refresh(address) for address in ordered))
        return [
            self._view(address, asked_by.get(address, ()))
            for address in ordered
            if address in self._teachers
        ]

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
                teacher.facts = await self._in_thread(lambda: _facts(channel))
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


def _facts(channel: TeacherChannel) -> dict[str, Any]:
    """Returns a teacher's model and statistics. Raises LecternError."""
    return teacher_figures(channel.get_model(PROBE_SECONDS), channel.get_stats(PROBE_SECONDS))


def _warning(address: str, facts: Mapping[str, Any], has_gpu: bool) -> str | None:
    """Returns a warning about a teacher on the CPU of a machine with a GPU, else None.

    A large teacher on the CPU seems to work, but is hundreds of times too slow.
    """
    host = address.rpartition(":")[0].strip("[]")
    on_cpu = str(facts.get("device", "")).startswith("cpu") and facts.get("engine") != "fixture"
    if not (on_cpu and has_gpu and is_loopback(host)):
        return None
    return "It runs on the CPU while this machine has a GPU; start it with --device cuda"
