"""A trainer without a model: keeps the contract of lectern_common/run/folder.py, and no more.

    python stand_in_trainer.py [--step-seconds S] [--home DIR] RUN_FOLDER [--resume]

The first word of the run's name says how it behaves:
    steady    makes its steps, or stops with a checkpoint on SIGTERM
    stubborn  ignores SIGTERM and SIGINT, and has a child that does so too
    crash     ends with exit status 1 after three steps of each attempt
    silent    ends with exit status 3 before it says anything
    fails     ends as failed, with a reason
    waits     waits for its teacher after one step

With the name of a stage before the folder it does a task, see stand_in_stage.py.
"""

import argparse
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from lectern_common.json_lines import append_json_line, keep_lines_before
from lectern_common.run.folder import RunFolder
from lectern_common.run.processes import identity_of
from lectern_common.run.status import RunState, Status, attempt_of_environment
from lectern_common.stages.requests import STAGES

CHECKPOINT_EVERY = 5


class StandIn:
    def __init__(self, folder: RunFolder, step_seconds: float, resume: bool) -> None:
        self.folder = folder
        self.spec = folder.read_spec()
        self.steps = self.spec.schedule.steps
        self.step_seconds = step_seconds
        self.kind = self.spec.name.partition("-")[0]
        self.state, self.since = RunState.STARTING, time.time()
        self.reason: str | None = None
        self.message: str | None = None
        self.latest: dict[str, float] = {}
        self.stop = False
        self.process = identity_of(os.getpid())
        self.attempt = attempt_of_environment()
        self.checkpoint = self._newest_checkpoint() if resume else None
        self.checkpoint_at: float | None = None
        self.step = self.checkpoint or 0

    def run(self) -> int:
        self.say(RunState.STARTING)
        keep_lines_before(self.folder.metrics_path, self.step)
        print(f"training {self.folder.run_id} from step {self.step}", flush=True)
        if self.kind == "fails":
            return self.end(RunState.FAILED, 1, "diverged", "the loss is not finite")
        self.say(RunState.RUNNING)
        first = self.step
        self.record()
        while self.step < self.steps:
            if self.stop:
                self.say(RunState.STOPPING)
                self.save()
                return self.end(RunState.STOPPED, 0, "stopped")
            if self.kind == "waits" and self.step == 1:
                if self.state is not RunState.WAITING_FOR_TEACHER:
                    self.say(RunState.WAITING_FOR_TEACHER, None, "no teacher at 127.0.0.1:1")
                time.sleep(self.step_seconds)
                continue
            time.sleep(self.step_seconds)
            self.step += 1
            self.record()
            if self.step % CHECKPOINT_EVERY == 0:
                self.save()
            if self.kind == "crash" and self.step == first + 3:
                print("Segmentation fault, or so", file=sys.stderr, flush=True)
                return 1
        self.save()
        return self.end(RunState.SUCCEEDED, 0)

    def record(self) -> None:
        done = self.step / self.steps
        floor = 4.3 + 0.6 * self.spec.objective.alpha + 0.1 * (self.spec.seed % 5)
        loss = floor + 3.3 * math.exp(-6 * done)
        noise = random.Random(f"{self.spec.seed} {self.step}").gauss(0, 0.12)  # noqa: S311
        losses = {"loss/total": loss + noise, "loss/ce": loss + noise}
        if self.spec.distils:
            losses["loss/kd"] = loss - floor + 0.4 + noise / 2
        if self.step % max(1, self.steps // 20) == 0:
            losses["loss/val"] = loss + 0.1
            self.latest |= {"loss/val_step": self.step}
            if losses["loss/val"] < self.latest.get("loss/val_best", math.inf):
                self.latest |= {
                    "loss/val_best": losses["loss/val"],
                    "loss/val_best_step": self.step,
                }
        self.latest |= losses
        append_json_line(self.folder.metrics_path, {"step": self.step, **losses})
        self.say()

    def save(self) -> None:
        (self.folder.checkpoints_path / f"step-{self.step:08d}").mkdir(parents=True, exist_ok=True)
        self.checkpoint, self.checkpoint_at = self.step, time.time()
        self.folder.append_event("checkpoint", step=self.step)

    def say(
        self, state: RunState | None = None, reason: str | None = None, message: str | None = None
    ) -> None:
        if state is not None:
            self.state, self.since = state, time.time()
            self.reason, self.message = reason, message
        assert self.process is not None
        status = Status(
            run_id=self.folder.run_id,
            state=self.state,
            since=self.since,
            heartbeat=time.time(),
            pid=os.getpid(),
            boot_id=self.process.boot_id,
            start_ticks=self.process.start_ticks,
            attempt=self.attempt,
            reason=self.reason,
            message=self.message,
            step=self.step,
            steps=self.steps,
            checkpoint_step=self.checkpoint,
            checkpoint_at=self.checkpoint_at,
            device="cpu",
            tokens_per_second=1234.5,
            seconds_per_step=self.step_seconds,
            teacher_wait_share=0.25 if self.spec.distils else None,
            latest={**self.latest},
        )
        self.folder.write_status(status)

    def end(
        self, state: RunState, code: int, reason: str | None = None, message: str | None = None
    ) -> int:
        self.say(state, reason, message)
        return code

    def _newest_checkpoint(self) -> int | None:
        found = [int(path.name[5:]) for path in self.folder.checkpoints_path.glob("step-*")]
        return max(found, default=None)


def main() -> int:
    if any(word in STAGES for word in sys.argv[1:]):
        sys.path.insert(0, str(Path(__file__).parents[2]))  # it is started as a file
        from tests.support.stand_in_stage import main as do_task

        return do_task(sys.argv[1:])
    parser = argparse.ArgumentParser()
    parser.add_argument("--step-seconds", type=float, default=0.01)
    parser.add_argument("--home")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    folder = RunFolder(options.folder)
    with folder.locked():
        launch = {
            "pid": os.getpid(),
            "resume": options.resume,
            "environment": dict(os.environ),
        }
        append_json_line(folder.path / "launches.jsonl", launch)
        stand_in = StandIn(folder, options.step_seconds, options.resume)
        if stand_in.kind == "silent":
            print("no module named anything", file=sys.stderr, flush=True)
            return 3
        if stand_in.kind == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        else:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: setattr(stand_in, "stop", True))
        return stand_in.run()


if __name__ == "__main__":
    sys.exit(main())
