"""What a program in the sandbox may use, and what became of it."""

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    Attributes:
        seconds: of wall-clock time, from the moment it begins.
        memory_bytes: of address space, for each of its processes.
        processes: at the same time, threads included.
        file_bytes: of each file, and of all of its files together: they are in memory.
    """

    seconds: float = 3.0
    memory_bytes: int = 1 << 30
    processes: int = 16
    file_bytes: int = 16 << 20

    def resources(self, *, shares_user: bool) -> dict[str, int]:
        """Returns name of resource -> value, for `setrlimit`.

        Args:
            shares_user: other processes of this machine have the same user. The limit on processes
                counts theirs too, so there is none.
        """
        found = {
            "RLIMIT_AS": self.memory_bytes,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_CPU": int(self.seconds) + 2,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_CORE": 0,
        }
        return found if shares_user else found | {"RLIMIT_NPROC": self.processes}


class Outcome(Enum):
    """What became of a program."""

    PASSED = "passed"
    """It ran to its end without an exception."""
    FAILED = "failed"
    """It raised an exception, exited, or was ended by a signal."""
    TIMED_OUT = "timed_out"
    """It ran longer than it may."""
    NOT_JUDGED = "not_judged"
    """It never began, which says nothing about it: the sandbox or the machine failed."""


@dataclass(frozen=True)
class Verdict:
    """What became of a program, with the reason in a few words; "" if it passed."""

    outcome: Outcome
    reason: str = ""
