"""python -m benchmarks.control.trainer RUN_FOLDER: a trainer without a model.

It makes a step every SECONDS_A_STEP, with the real recorder, so that it says all that trainers say.
"""

import math
import signal
import sys
import time
from pathlib import Path

from lectern_common.logs import configure_logs
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState
from student_trainer.journal.recorder import Recorder
from student_trainer.stop import Stop, StopRequested

SECONDS_A_STEP = 0.1


def main() -> int:
    configure_logs("warning")
    folder, stop = RunFolder(Path(sys.argv[1])), Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.request())
    steps = folder.read_spec().schedule.steps
    with folder.locked(patience_seconds=10), Recorder(folder, stop) as recorder:
        recorder.set_progress(steps=steps, device="cpu")
        recorder.open_metrics([], 0)
        recorder.set_state(RunState.RUNNING)
        began = time.monotonic()
        try:
            for step in range(1, steps + 1):
                stop.sleep(SECONDS_A_STEP)
                recorder.record(step, _record(step, time.monotonic() - began))
        except StopRequested:
            recorder.set_state(RunState.STOPPED, "stopped", stop.why)
            return 0
        recorder.set_state(RunState.SUCCEEDED)
    return 0


def _record(step: int, seconds: float) -> dict[str, float]:
    loss = 2 + 3 * math.exp(-step / 100)
    return {
        "time": time.time(),
        "progress/tokens": 4096 * step,
        "progress/seconds": seconds,
        "loss/total": loss,
        "loss/ce": loss,
        "perf/tokens_per_second": 40_960.0,
        "time/step_seconds": SECONDS_A_STEP,
        "time/teacher_wait_seconds": 0.0,
    }


if __name__ == "__main__":
    sys.exit(main())
