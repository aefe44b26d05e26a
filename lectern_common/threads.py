"""CPU threads of processes with a model: how many cores there are, and how threads wait.

OpenMP threads spin while they wait. If other processes need the same cores, as several trainers and
a teacher on one machine do, spinning takes the time that the awaited thread needs: a step of two
threads on two busy cores took 2.4 s with spinning and 0.47 s without. The library reads the setting
once, when it is loaded, so it must be in the environment before a process starts.
"""

import os
from collections.abc import Mapping

VARIABLE = "OMP_WAIT_POLICY"
THREADS_VARIABLE = "OMP_NUM_THREADS"


def usable_cores() -> int:
    """Returns how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0))


def threads_of_environment(env: Mapping[str, str] = os.environ) -> int | None:
    """Returns the number of threads that the environment asks for, or None."""
    first = env.get(THREADS_VARIABLE, "").partition(",")[0].strip()
    return int(first) if first.isdigit() and int(first) > 0 else None


def waiting_environment(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the variable that makes waiting threads sleep, unless it is set already."""
    return {} if VARIABLE in env else {VARIABLE: "PASSIVE"}
