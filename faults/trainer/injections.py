"""Faults of a trainer, injected into the process before it starts.

slow-saves=SECONDS      each line of code in a save takes this much longer, and tensors are written
                        in small pieces; meanwhile the run folder has a file `saving`
waiting-steps=SECONDS   each step waits this long first, as for a teacher
deaf-steps=SECONDS      each step prints `computing`, and computes this much longer
not-finite=WHAT:STEPS   in these steps (such as 3,4) the `loss` or `gradient` is nan, or the loss
                        inf (`infinite-loss`)
clock-back=SECONDS      the time of day jumps back this much, twice a second
stalled-metrics=SECONDS:LINES   each line of metrics takes this long to write; LINES may wait
full-disk=STEPS         there is no space for the checkpoints of these steps
full-record=SEQUENCES   there is no space for more than so many sequences of a record
frequent-saves=SECONDS  a recorder makes what it has outlive it so often
"""

import errno
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults.replacing import put

if TYPE_CHECKING:
    from student_trainer.teacher.prefetch import Prefetch

SAVING_NAME = "saving"
COMPUTING = "computing"
_PIECE_BYTES = 16 * 1024
_ROOT = Path(__file__).parents[2]
# The code that a save runs; the last file puts the folder in place.
_OWN_CODE = tuple(
    str(_ROOT / name) for name in ("faults", "student_trainer", "lectern_common/files.py")
)


def _slow_saves(value: str) -> None:
    import safetensors.torch

    from student_trainer.journal.checkpoint import CheckpointStore

    seconds = float(value)
    create, save = CheckpointStore.__init__, CheckpointStore.save

    def slowed(frame: Any, event: str, _argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(_OWN_CODE):
            return None
        if event == "line":
            time.sleep(seconds)
        return slowed

    def in_pieces(tensors: dict[str, Any], path: Path) -> None:
        data = safetensors.torch.save(tensors)
        with path.open("wb", buffering=0) as file:
            for first in range(0, len(data), _PIECE_BYTES):
                file.write(data[first : first + _PIECE_BYTES])

    def created(self: CheckpointStore, folder: Path, **named: Any) -> None:
        create(self, folder, **{**named, "save_tensors": in_pieces})

    def announced(self: CheckpointStore, *arguments: Any, **named: Any) -> Path:
        sign = self._folder.parent / SAVING_NAME
        sign.touch()
        sys.settrace(slowed)
        try:
            return save(self, *arguments, **named)
        finally:
            sys.settrace(None)
            sign.unlink()

    put(CheckpointStore, "__init__", created)
    put(CheckpointStore, "save", announced)


def _before_each_step(wait: Callable[["Prefetch"], None]) -> None:
    """Calls wait(prefetch) before each step takes its rows."""
    from student_trainer.teacher.prefetch import Prefetch

    take = Prefetch.take

    def waiting(self: Prefetch, *arguments: Any) -> Any:
        wait(self)
        return take(self, *arguments)

    put(Prefetch, "take", waiting)


def _waiting_steps(value: str) -> None:
    def wait(prefetch: "Prefetch") -> None:
        prefetch._asking._stop.sleep(float(value))

    _before_each_step(wait)


def _deaf_steps(value: str) -> None:
    def compute(_prefetch: object) -> None:
        end = time.monotonic() + float(value)
        print(COMPUTING, flush=True)
        while time.monotonic() < end:
            sum(range(1000))

    _before_each_step(compute)


def _not_finite(value: str) -> None:
    from student_trainer.objective import loss as objective
    from student_trainer.run import loop
    from student_trainer.teacher.prefetch import Prefetch

    what, _, named = value.partition(":")
    steps = {int(step) for step in named.split(",")}
    factor = float("inf") if what == "infinite-loss" else float("nan")
    take, loss = Prefetch.take, objective.distillation_loss
    current = -1

    def taken(self: Prefetch, step: int) -> Any:
        nonlocal current
        current = step
        return take(self, step)

    def broken(hidden: Any, *arguments: Any, **named: Any) -> Any:
        if current not in steps:
            return loss(hidden, *arguments, **named)
        if what != "gradient":
            return loss(hidden * factor, *arguments, **named)
        hidden = hidden.clone()
        hidden.register_hook(lambda gradient: gradient * factor)
        return loss(hidden, *arguments, **named)

    put(Prefetch, "take", taken)
    put(loop, "distillation_loss", broken)


def _clock_back(value: str) -> None:
    import types

    from grpc import _channel, _common, _utilities

    from student_trainer.journal.recorder import Recorder

    real, began = time.time, time.monotonic()

    def jumping() -> float:
        return real() - float(value) * int(2 * (time.monotonic() - began))

    # gRPC's core turns deadlines into durations by the system clock, which does not jump.
    for module in (_channel, _common, _utilities):
        put(module, "time", types.SimpleNamespace(**vars(time)))
    put(time, "time", jumping)
    create = Recorder.__init__

    def created(self: Recorder, *arguments: Any, **named: Any) -> None:
        create(self, *arguments, **{**named, "clock": jumping})

    put(Recorder, "__init__", created)


def _stalled_metrics(value: str) -> None:
    from student_trainer.journal import sinks

    seconds, _, lines = value.partition(":")
    create, write = sinks.QueuedSink.__init__, sinks.MetricsFile.write

    def created(self: Any, sink: Any, *_: object, **named: Any) -> None:
        create(self, sink, **{**named, "limit": int(lines)})

    def stalled(self: Any, *arguments: Any) -> None:
        time.sleep(float(seconds))
        write(self, *arguments)

    put(sinks.QueuedSink, "__init__", created)
    put(sinks.MetricsFile, "write", stalled)


def _full_disk(value: str) -> None:
    from lectern_common.run import checkpoint_files
    from student_trainer.journal import checkpoint

    steps = {int(step) for step in value.split(",")}
    save, write = checkpoint.CheckpointStore.save, checkpoint_files.write_json
    current = -1

    def saved(self: Any, step: int, *rest: Any) -> Path:
        nonlocal current
        current = step
        return save(self, step, *rest)

    def full(path: Path, data: Any) -> None:
        if current in steps:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    put(checkpoint.CheckpointStore, "save", saved)
    put(checkpoint, "write_json", full)


def _full_record(value: str) -> None:
    from student_trainer.record.writer import PartWriter

    left, add = int(value), PartWriter.add

    def added(self: Any, *arguments: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, *arguments)

    put(PartWriter, "add", added)


def _frequent_saves(value: str) -> None:
    from student_trainer.record import precompute

    put(precompute, "_SAVE_SECONDS", float(value))


FAULTS: dict[str, Callable[[str], None]] = {
    "slow-saves": _slow_saves,
    "waiting-steps": _waiting_steps,
    "deaf-steps": _deaf_steps,
    "not-finite": _not_finite,
    "clock-back": _clock_back,
    "stalled-metrics": _stalled_metrics,
    "full-disk": _full_disk,
    "full-record": _full_record,
    "frequent-saves": _frequent_saves,
}
