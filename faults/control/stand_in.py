"""A trainer that keeps the contract of the run folder and trains nothing, for rows that need many.

    stand-in=SECONDS    each step takes this long
    clock=FILE          as in injections.py

The process, its lock, signals, status, metrics and exit status are the trainer's own; only the
training between them is replaced. So it starts without torch. A task does nothing and succeeds. The
first word of the run's name says how it behaves:

    deaf      ignores SIGTERM and SIGINT, as do its child and grandchild
    fails     fails after three steps
    kept      waits before its first step until its run folder has a file `go`
    stalls    makes no step after its fifth; its heart goes on beating
    says      writes instead of each status what the file NAME.status in its home holds
    old       writes its status as the release before did, version 1
    new       writes its status as a later release might, version 99
    log       prints what no terminal should get
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from faults.replacing import put

CHECKPOINT_EVERY = 5
ANNOUNCED = "a stand-in begins"
GO_NAME = "go"
STALLS_AFTER = 5
LOG_PIECES = (
    b"\x1b]0;owned\x07\x1b[31mred\x1b[0m",
    b"<script>alert(1)</script><img src=x onerror=alert(2)>",
    b"bad UTF-8: \xff\xfe\xc3(",
    b"\x9b31m\xe2\x80\xaeright to left",
    b"a progress bar\rdone",
)
LONG_LINE_BYTES = 100 * 1024 * 1024

_CHILD = "import signal, time; signal.signal(15, signal.SIG_IGN); {}time.sleep(600)"
_GRANDCHILD = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', {!r}]); "


def kind_of(name: str) -> str:
    """Returns how a stand-in of a run with this name behaves."""
    return name.partition("-")[0]


def _stand_in(value: str) -> None:
    from student_trainer.run import fork_server, life
    from student_trainer.stages.table import STAGES

    def trained(folder: Any, roots: Any, recorder: Any, stop: Any, *, resume: bool) -> Any:
        return _train(folder, roots, recorder, stop, float(value), resume=resume)

    put(life, "_train_and_export", trained)
    put(fork_server, "_load_trainer", lambda: None)
    put(life, "_recorder", _recorder_of(life._recorder))
    for name, stage in STAGES.items():
        STAGES[name] = replace(stage, function=lambda: _do_nothing)


def _do_nothing(*_: Any, **__: Any) -> dict[str, Any]:
    return {"stands_in": True}


def _recorder_of(made: Callable[..., Any]) -> Callable[..., Any]:
    def recorder(folder: Any, *arguments: Any, **named: Any) -> Any:
        print(ANNOUNCED, os.getpid(), flush=True)
        kind = kind_of(folder.run_id)
        if kind in ("says", "old", "new"):
            _say_otherwise(kind)
        return made(folder, *arguments, **named)

    return recorder


def _train(
    folder: Any, roots: Any, recorder: Any, stop: Any, seconds: float, *, resume: bool
) -> tuple[Any, str | None, str | None]:
    from lectern_common.errors import Diverged
    from lectern_common.run.status import RunState

    kind = kind_of(folder.run_id)
    if kind == "deaf":
        _go_deaf()
    if kind == "log":
        _write_log()
    while kind == "kept" and not (folder.path / GO_NAME).exists() and not stop.requested:
        time.sleep(0.01)
    spec = folder.read_spec()
    step = folder.newest_step or 0 if resume else 0
    recorder.open_metrics([], step)
    recorder.set_progress(step=step, device="cpu")
    recorder.set_state(RunState.RUNNING)
    _record(recorder, step)
    while step < spec.schedule.steps:
        time.sleep(seconds)
        if stop.requested:
            _save(folder, recorder, step)
            return RunState.STOPPED, "stopped", stop.why
        if kind == "fails" and step == 3:
            raise Diverged("the loss is not finite")
        if kind == "stalls" and step == STALLS_AFTER:
            continue
        step += 1
        _record(recorder, step)
        if step % CHECKPOINT_EVERY == 0:
            _save(folder, recorder, step)
    return RunState.SUCCEEDED, None, None


def _record(recorder: Any, step: int) -> None:
    metrics = {"loss/total": 9 / (1 + step), "loss/ce": 9 / (1 + step)}
    recorder.record(step, {**metrics, "time/step_seconds": 0.01, "perf/tokens_per_second": 1e3})


def _save(folder: Any, recorder: Any, step: int) -> None:
    recorder.before_checkpoint()
    (folder.checkpoints_path / f"step-{step:08d}").mkdir(parents=True, exist_ok=True)
    recorder.after_checkpoint(step)


def _go_deaf() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    child = _CHILD.format(_GRANDCHILD.format(_CHILD.format("")))
    subprocess.Popen([sys.executable, "-c", child])


def _write_log() -> None:
    sys.stdout.flush()
    for piece in LOG_PIECES:
        os.write(1, piece + b"\n")
    piece = b"x" * (1 << 20)
    for _ in range(LONG_LINE_BYTES // len(piece)):
        os.write(1, piece)
    os.write(1, b"\nthe last line\n")


def _say_otherwise(kind: str) -> None:
    from lectern_common.files import write_atomic
    from lectern_common.run.folder import RunFolder

    write = RunFolder.write_status

    def said(self: RunFolder, status: Any) -> None:
        if kind == "says":
            text = (
                self.path.parents[1] / f"{status.run_id.rpartition('-')[0]}.status"
            ).read_bytes()
            write_atomic(self.status_path, _filled(text, self, status, write), durable=False)
            return
        write(self, status)
        data = json.loads(self.status_path.read_bytes())
        write_atomic(self.status_path, json.dumps(_of_version(data, kind)).encode(), durable=False)

    put(RunFolder, "write_status", said)


def _filled(text: bytes, folder: Any, status: Any, write: Callable[..., None]) -> bytes:
    """Returns the text; one that begins with `{+` is added to the fields of a right status."""
    if not text.startswith(b"{+"):
        return text
    write(folder, status)
    right = folder.status_path.read_bytes()
    added: bytes = right.rstrip()[:-1] + b", " + text[2:]
    return added


def _of_version(data: dict[str, Any], kind: str) -> dict[str, Any]:
    if kind == "new":
        return {**data, "version": 99, "phase": {"of": "a later release"}}
    import psutil

    created = psutil.Process(data["pid"]).create_time()
    known = (
        "run_id state since heartbeat pid reason message step steps checkpoint_step device "
        "tokens_per_second teacher_wait_share latest"
    )
    kept = {name: data[name] for name in known.split()}
    return {**kept, "version": 1, "process_create_time": created}


def _clock(value: str) -> None:
    from faults.control.injections import step_clock
    from student_trainer.journal.recorder import Recorder

    clock, create = step_clock(value), Recorder.__init__

    def created(self: Recorder, *arguments: Any, **named: Any) -> None:
        create(self, *arguments, **{**named, "clock": clock})

    put(Recorder, "__init__", created)


FAULTS: dict[str, Callable[[str], None]] = {"stand-in": _stand_in, "clock": _clock}
