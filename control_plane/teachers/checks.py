"""Checks a run before it is accepted, its teacher included.

Checks run in threads of their own, a few at a time: they block neither the event loop nor the
reconcile loop, however long a teacher takes to answer.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pydantic import BaseModel

from control_plane.teachers.secrets import require_files_known, require_secrets_known
from control_plane.trainers.devices import Devices
from lectern_common.checks.check import Check
from lectern_common.checks.documents import with_documents
from lectern_common.checks.preflight import Found, examine, require_startable
from lectern_common.errors import InvalidSpec, Unauthenticated, Untrusted
from lectern_common.roots import Roots
from lectern_common.spec.run_spec import RunSpec
from lectern_common.stages.evaluate import EvaluateRequest, is_address, require_sandbox
from lectern_common.stages.precompute import PrecomputeRequest
from lectern_common.teacher.identity import TeacherIdentity
from lectern_common.teacher.secrets import SecretFiles

MAX_CHECKS_AT_ONCE = 4
_Checked = TypeVar("_Checked")


class StartChecks:
    """Checks runs before they are accepted, at most MAX_CHECKS_AT_ONCE at a time.

    Args:
        roots: the folders that a spec's paths are relative to.
        devices: the devices to train on.
        teachers: the configured servers, and the secrets that may be sent to each.
    """

    def __init__(self, roots: Roots, devices: Devices, teachers: Mapping[str, SecretFiles]) -> None:
        self._roots = roots
        self._devices = devices
        self._teachers = dict(teachers)
        self._pool = ThreadPoolExecutor(MAX_CHECKS_AT_ONCE, thread_name_prefix="check")

    def close(self) -> None:
        """Drops the checks that have not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def resolved(self, spec: RunSpec, begun: RunSpec | None = None) -> RunSpec:
        """Returns the spec with what its data decides filled in.

        Args:
            begun: the spec of an earlier run with the same rows, which decides instead.
        """
        return await self._in_thread(lambda: with_documents(spec, self._roots, begun))

    async def examined(self, spec: RunSpec) -> tuple[list[Check], Found]:
        """Returns every check of a new run, and what they found; creates nothing.

        Raises:
            LecternError: there is no such device, or the teacher's secrets may not be sent to it.
        """
        self._require_allowed(spec)
        return await self._in_thread(lambda: examine(spec, self._roots))

    async def require_startable(
        self,
        spec: RunSpec,
        taught_by: TeacherIdentity | None = None,
        *,
        packs_chats: bool = True,
    ) -> TeacherIdentity | None:
        """Returns the run's teacher (None without one) if every check passes.

        Args:
            taught_by: the teacher of a run that was accepted before, which must not change.
            packs_chats: of the run to resume, see RunFolder.

        Raises:
            LecternError: the first check that fails.
        """
        self._require_allowed(spec)
        try:
            return await self._in_thread(
                lambda: require_startable(
                    spec, self._roots, taught_by=taught_by, packs_chats=packs_chats
                )
            )
        except Unauthenticated as error:
            # The client's spec is at fault here, not the client's own token.
            field = "tls_ca_file" if isinstance(error, Untrusted) else "token_file"
            why = f"the teacher refused access: {error}"
            raise InvalidSpec([(f"teacher.{field}", why)]) from None

    def require_task_sends_known(self, request: BaseModel) -> None:
        """Raises InvalidSpec if a task would send a secret where this process sends none."""
        if isinstance(request, EvaluateRequest):
            files = SecretFiles.of(request)
            for name in (request.model, request.against):
                if name is not None and is_address(name):
                    require_files_known(name, files, self._teachers)
        if isinstance(request, PrecomputeRequest) and request.spec.teacher is not None:
            teacher = request.spec.teacher
            files = SecretFiles.of(teacher)
            require_files_known(teacher.address, files, self._teachers, "spec.teacher.")

    def _require_allowed(self, spec: RunSpec) -> None:
        """Raises LecternError if this machine lacks a device, or a client may not ask for this."""
        self._devices.require_has(spec)
        if spec.teachers is not None:
            why = "a control plane takes no runs of several teachers yet; use `lectern train`"
            raise InvalidSpec([("teachers", why)])
        if spec.teacher is not None:
            require_secrets_known(spec.teacher, self._teachers)
        if spec.evaluation.code is not None:
            require_sandbox(spec.evaluation.code, "evaluation.code.sandbox")

    async def _in_thread(self, check: Callable[[], _Checked]) -> _Checked:
        return await asyncio.get_running_loop().run_in_executor(self._pool, check)
