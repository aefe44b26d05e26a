"""How CPU threads wait for each other, in every process with a model.

OpenMP's threads spin while they wait. Where other processes want the same cores, as several
trainers and a teacher on one machine do, spinning takes the time that the awaited thread needs: a
step of two threads on two busy cores took 2.4 s with it and 0.47 s without. The library reads the
setting once, when it is loaded, so it is put into the environment of a process before it starts.
"""

import os
from collections.abc import Mapping

VARIABLE = "OMP_WAIT_POLICY"


def waiting_environment(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the variable that makes waiting threads sleep, unless it is set already."""
    return {} if VARIABLE in env else {VARIABLE: "PASSIVE"}
