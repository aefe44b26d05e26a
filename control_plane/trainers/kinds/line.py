"""The line of all that waits for devices: runs and tasks, by priority, then by age."""

from collections.abc import Sequence
from contextlib import suppress
from heapq import merge

from control_plane.runs.record import ACTIVE
from control_plane.trainers.devices import Devices, Place, Waiting
from control_plane.trainers.kinds.kind import QueuedJob, Reader
from lectern_common.errors import InvalidSpec


class Line:
    """Gives out places to the rows of several kinds.

    Args:
        devices: that they wait for.
        readers: one of each kind.
    """

    def __init__(self, devices: Devices, readers: Sequence[Reader]) -> None:
        self._devices = devices
        self._readers = readers

    def in_order(self) -> list[QueuedJob]:
        """Returns all that waits, the next to start first."""
        lines = [reader.in_line() for reader in self._readers]
        return list(merge(*lines, key=lambda job: (-job.priority, job.created_at)))

    def places(self, line: Sequence[QueuedJob] | None = None) -> dict[str, Place]:
        """Returns what each of them gets now, by its id; damaged rows are left out.

        Args:
            line: what `in_order` has just returned; None asks anew.
        """
        waiting = []
        for job in self.in_order() if line is None else line:
            with suppress(InvalidSpec):  # of a damaged row; the loop fails it
                waiting.append(Waiting.of(job.id, job.device))
        return self._devices.places(waiting, self.taken()) if waiting else {}

    def taken(self) -> dict[str, list[str]]:
        """Returns the devices of each active one."""
        active = (job for reader in self._readers for job in reader.in_states(ACTIVE))
        return {job.id: job.slots for job in active if job.slots}
