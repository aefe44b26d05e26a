"""Makes waiting OpenMP threads sleep instead of spin, in every process with a model.

OpenMP threads spin while they wait. If other processes need the same cores, as several trainers and
a teacher on one machine do, spinning takes the time that the awaited thread needs: a step of two
threads on two busy cores took 2.4 s with spinning and 0.47 s without. The library reads the setting
once, when it is loaded, so it must be in the environment before a process starts.
"""

import os
from collections.abc import Mapping

VARIABLE = "OMP_WAIT_POLICY"


def waiting_environment(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the variable that makes waiting threads sleep, unless it is set already."""
    return {} if VARIABLE in env else {VARIABLE: "PASSIVE"}
