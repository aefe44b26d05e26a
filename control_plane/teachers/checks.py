"""What is checked before a run is accepted, its teacher included.

Nothing here waits on the event loop: checks run in threads, few at a time.
"""

import asyncio
from collections.abc import Mapping

from control_plane.teachers.secrets import require_secrets_known
from control_plane.trainers.devices import Devices
from lectern_common.checks.preflight import require_startable
from lectern_common.errors import InvalidSpec, Unauthenticated, Untrusted
from lectern_common.roots import Roots
from lectern_common.spec.run_spec import RunSpec
from lectern_common.teacher.identity import TeacherIdentity
from lectern_common.teacher.secrets import SecretFiles

MAX_CHECKS_AT_ONCE = 4


class StartChecks:
    """What is asked before a run is accepted. Keeps few checks going at one time.

    Args:
        roots: what a spec's paths are relative to.
        devices: what there is to train on.
        teachers: servers given at the start, and the secrets that may be sent to each.
    """

    def __init__(self, roots: Roots, devices: Devices, teachers: Mapping[str, SecretFiles]) -> None:
        self._roots = roots
        self._devices = devices
        self._teachers = dict(teachers)
        self._room = asyncio.Semaphore(MAX_CHECKS_AT_ONCE)

    async def require_startable(
        self, spec: RunSpec, taught_by: TeacherIdentity | None = None
    ) -> TeacherIdentity | None:
        """Returns the run's teacher where nothing is known to keep the run from working.

        Args:
            taught_by: of a run that was accepted before; its teacher has to be this one still.

        Raises:
            LecternError: the first check that fails.
        """
        self._devices.require_has(spec)
        if spec.teacher is not None:
            require_secrets_known(spec.teacher, self._teachers)
        async with self._room:
            try:
                return await asyncio.to_thread(
                    require_startable, spec, self._roots, taught_by=taught_by
                )
            except Unauthenticated as error:
                # Towards the client it is the spec that is wrong, not the client's own token.
                field = "tls_ca_file" if isinstance(error, Untrusted) else "token_file"
                why = f"the teacher refuses the run: {error}"
                raise InvalidSpec([(f"teacher.{field}", why)]) from None
