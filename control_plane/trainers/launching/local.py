"""The backend of this machine: handles name its processes (processes.py)."""

from collections.abc import Mapping
from typing import Protocol

from control_plane.trainers.kinds.kind import Folder
from control_plane.trainers.launching.seam import Needs, Seen, Sight
from lectern_common.run.processes import LOCAL, Handle, Identity


class Processes(Protocol):
    """What starts and ends processes here: processes.LocalProcesses; tests pass a fake."""

    def start(
        self, folder: Folder, *, resume: bool, environment: Mapping[str, str]
    ) -> Identity: ...

    def find(self, folder: Folder, said: Identity | None = None) -> Identity | None: ...

    def is_alive(self, process: Identity) -> bool: ...

    def exit_status(self, process: Identity) -> int | None: ...

    def terminate(self, process: Identity) -> None: ...

    def stop_at_checkpoint(self, process: Identity) -> None: ...

    def kill(self, process: Identity) -> None: ...

    def forget(self, process: Identity) -> None: ...

    def tend(self) -> None: ...

    def slowed(self) -> str | None: ...

    def close(self) -> None: ...


class LocalLauncher:
    """A seam.Launcher over processes of this machine. It never says WAITING or UNKNOWN."""

    backend = LOCAL
    has_own_queue = False

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def start(
        self,
        folder: Folder,
        *,
        attempt: int,
        resume: bool,
        needs: Needs,
        environment: Mapping[str, str],
    ) -> Handle:
        found = self.find(folder, attempt)
        if found is not None:
            return found
        process = self._processes.start(folder, resume=resume, environment=environment)
        return Handle.of_process(process)

    def find(self, folder: Folder, attempt: int, said: Identity | None = None) -> Handle | None:
        process = self._processes.find(folder, said)
        return None if process is None else Handle.of_process(process)

    def look(self, handle: Handle) -> Seen:
        process = handle.process
        if process is None:  # of a release before identities
            return Seen(Sight.GONE)
        if self._processes.is_alive(process):
            return Seen(Sight.ALIVE)
        return Seen(Sight.GONE, exit_status=self._processes.exit_status(process))

    def terminate(self, handle: Handle) -> None:
        if handle.process is not None:
            self._processes.terminate(handle.process)

    def stop_at_checkpoint(self, handle: Handle) -> None:
        if handle.process is not None:
            self._processes.stop_at_checkpoint(handle.process)

    def kill(self, handle: Handle) -> None:
        if handle.process is not None:
            self._processes.kill(handle.process)

    def forget(self, handle: Handle) -> None:
        if handle.process is not None:
            self._processes.forget(handle.process)

    def tend(self) -> None:
        self._processes.tend()

    def slowed(self) -> str | None:
        return self._processes.slowed()

    def close(self) -> None:
        self._processes.close()
