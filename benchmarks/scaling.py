"""How much more work two cores do than one: on a shared machine, two "cores" may be one.

Measured with two processes, each bound to a core and multiplying matrices as a small model does.
"""

import os
import statistics
import subprocess
import sys
import time

TURNS, SECONDS = 5, 0.5

# Products until the end of a window that begins when both are ready; prints their number.
_PROGRAM = """
import sys, time, torch
torch.set_num_threads(1)
left, right = torch.randn(1024, 256), torch.randn(256, 704)
for _ in range(5):
    torch.mm(left, right)
print("ready", flush=True)
for line in sys.stdin:
    begin, end = map(float, line.split())
    while time.monotonic() < begin:
        pass
    count = 0
    while time.monotonic() < end:
        torch.mm(left, right)
        count += 1
    print(count, flush=True)
"""


def two_core_scaling() -> float | None:
    """Returns the work of two busy cores over that of one, 2 if they are independent.

    Takes about seven seconds. None if this process may use only one core.
    """
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        return None
    workers = [_worker(core) for core in cores]
    try:
        turns = []
        for _ in range(TURNS):
            alone = sum(_work(worker) for worker in ([workers[0]], [workers[1]])) / 2
            turns.append(_work(workers) / alone)
        return statistics.median(turns)
    finally:
        for worker in workers:
            worker.communicate()


def against_allowed(step: float, student: float, teacher: float, scaling: float) -> float:
    """Returns a pipelined step's seconds over the least that the two cores allow.

    While both work, each advances at scaling / 2 of its speed alone, so the best possible is
    larger + smaller * (2 / scaling - 1): the larger of the two if the cores are independent.

    Args:
        step: seconds of the pipelined step.
        student, teacher: seconds of each alone.
        scaling: see two_core_scaling.
    """
    return step / allowed_seconds(student, teacher, scaling)


def allowed_seconds(one: float, other: float, scaling: float) -> float:
    """Returns the least time in which two cores do both, each of which takes so long alone."""
    smaller, larger = sorted((one, other))
    return larger + smaller * (2 / scaling - 1)


def _worker(core: int) -> "subprocess.Popen[str]":
    worker = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )
    os.sched_setaffinity(worker.pid, [core])
    _line(worker)
    return worker


def _work(workers: "list[subprocess.Popen[str]]") -> int:
    """Returns the products that these workers do in one window."""
    begin = time.monotonic() + 0.05
    for worker in workers:
        if worker.stdin is None:
            raise RuntimeError("the measuring process has no input")
        worker.stdin.write(f"{begin} {begin + SECONDS}\n")
        worker.stdin.flush()
    return sum(int(_line(worker)) for worker in workers)


def _line(worker: "subprocess.Popen[str]") -> str:
    line = worker.stdout.readline() if worker.stdout else ""
    if not line:
        raise RuntimeError("the measuring process failed")
    return line
