"""Metric sinks and their queues: files, TensorBoard, Weights & Biases."""

import json
import math
import signal
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from lectern_common.errors import DiskFull, Misconfigured
from student_trainer.journal.sinks import Metrics, QueuedSink, WeightsAndBiases
from student_trainer.stop import Stop


class Slow:
    """A sink that writes only once released."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.steps: list[int] = []

    def write(self, step: int, metrics: Metrics) -> None:
        self.go.wait(20)
        self.steps.append(step)

    def flush(self) -> None: ...

    def close(self) -> None: ...


def test_a_sink_slower_than_the_loop_drops_and_counts_and_never_blocks() -> None:
    slow = Slow()
    sink = QueuedSink(slow, limit=5)
    for step in range(50):
        sink.put(step, {})
    assert sink.dropped >= 44
    slow.go.set()
    sink.close()
    assert len(slow.steps) + sink.dropped == 50
    assert slow.steps == sorted(slow.steps)


class Patience:
    """Like `threading.Event.wait`, but the first `impatient` waits time out at once."""

    def __init__(self, impatient: int, then: Callable[[], None] = lambda: None) -> None:
        self._impatient = impatient
        self._then = then
        self.asked: list[float] = []

    def __call__(self, event: threading.Event, seconds: float) -> bool:
        self.asked.append(seconds)
        if len(self.asked) <= self._impatient:
            return False
        self._then()
        return event.wait(20)


def test_a_stalled_disk_is_waited_for_with_a_warning_each_half_minute() -> None:
    slow = Slow()
    sink = QueuedSink(slow, wait=Patience(3, slow.go.set))
    for step in range(4):
        sink.put(step, {})
    with capture_logs() as logs:
        sink.flush(Stop())
    assert slow.steps == [0, 1, 2, 3]
    assert [(entry["event"], entry["seconds"], entry["lines"]) for entry in logs] == [
        ("disk_stalled", 30.0, 4),
        ("disk_stalled", 60.0, 4),
        ("disk_stalled", 90.0, 4),
    ]
    sink.close()


def test_a_full_queue_is_flushed_too() -> None:
    slow = Slow()
    sink = QueuedSink(slow, limit=2, wait=Patience(1, slow.go.set))
    for step in range(9):
        sink.put(step, {})
    sink.flush(Stop())
    assert len(slow.steps) + sink.dropped == 9
    sink.close()


def test_a_stop_during_a_stall_ends_the_wait_with_an_error() -> None:
    slow, stop = Slow(), Stop()
    sink = QueuedSink(slow, wait=Patience(2))
    sink.put(0, {})
    stop.request()
    with pytest.raises(DiskFull, match="could not finish writing for 30 s") as caught:
        sink.flush(stop)
    assert (caught.value.reason, caught.value.retryable) == ("disk_stalled", True)
    assert slow.steps == []
    slow.go.set()
    sink.close()


def test_lines_left_at_the_end_are_counted_and_logged() -> None:
    slow = Slow()
    sink = QueuedSink(slow, wait=Patience(1))
    for step in range(5):
        sink.put(step, {})
    with capture_logs() as logs:
        sink.close()
    assert sink.dropped == 5
    assert [(entry["log_level"], entry["lines_lost"]) for entry in logs] == [("error", 5)]
    slow.go.set()
    sink._thread.join()


def test_a_sink_that_may_fail_never_makes_the_loop_wait() -> None:
    """S14: a checkpoint does not wait for it, and its lines are dropped if it is too slow."""
    slow = Slow()
    sink = QueuedSink(slow, limit=3, may_fail=True)
    for step in range(20):
        sink.put(step, {})
    sink.flush(Stop())
    assert sink.dropped >= 16
    assert sink.problem is None
    slow.go.set()
    sink.close()
    assert len(slow.steps) + sink.dropped == 20


class Failing(Slow):
    """Writes once, then fails."""

    def write(self, step: int, metrics: Metrics) -> None:
        super().write(step, metrics)
        if step > 0:
            raise ConnectionError("no network")


def test_a_sink_that_may_fail_loses_only_its_own_lines() -> None:
    failing = Failing()
    sink = QueuedSink(failing, may_fail=True)
    with capture_logs() as logs:
        for step in range(5):
            sink.put(step, {})
        failing.go.set()
        sink.close()
        sink.put(5, {})  # raises nothing
    assert failing.steps == [0, 1]
    assert sink.dropped == 4
    assert sink.problem == "ConnectionError: no network"
    assert [entry["event"] for entry in logs] == ["sink_failed"]


def test_a_sink_that_may_not_fail_ends_the_loop_with_its_error() -> None:
    failing = Failing()
    failing.go.set()
    sink = QueuedSink(failing)
    for step in range(2):
        sink.put(step, {})
    sink.flush(Stop())
    with pytest.raises(ConnectionError):
        sink.put(2, {})
    sink.close()


class FakeRun:
    """A fake of wandb.init and of the run that it returns."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.threads: list[str] = []
        self.lines: list[tuple[int, dict[str, Any]]] = []
        self.finished = False

    def __call__(self, **settings: Any) -> "FakeRun":
        self.settings = settings
        self.threads.append(threading.current_thread().name)
        return self

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self.lines.append((step, metrics))

    def finish(self) -> None:
        self.finished = True


def test_weights_and_biases_gets_numbers_by_step_under_the_runs_id(tmp_path: Path) -> None:
    fake = FakeRun()
    report = WeightsAndBiases(tmp_path, "coder-1", {"seed": 3}, init=fake)
    assert fake.settings == {}  # nothing waits for a network before the first line
    sink = QueuedSink(report, may_fail=True)
    sink.put(0, {"loss/val": 3.0})
    sink.put(7, {"loss/total": 2.5, "loss/kd": None})
    sink.close()
    assert fake.lines == [(0, {"loss/val": 3.0}), (7, {"loss/total": 2.5})]
    assert fake.threads == ["write-WeightsAndBiases"]
    assert fake.finished
    assert (fake.settings["id"], fake.settings["resume"]) == ("coder-1", "allow")
    assert (fake.settings["config"], fake.settings["dir"]) == ({"seed": 3}, str(tmp_path))


def test_weights_and_biases_without_a_key_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(Misconfigured, match="needs WANDB_API_KEY"):
        WeightsAndBiases(tmp_path, "r", {})


def test_a_missing_wandb_is_refused_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(Misconfigured, match=r"install lectern\[wandb\]"):
        WeightsAndBiases(tmp_path, "r", {})


def wandb_records(folder: Path) -> list[Any]:
    """Returns what wandb wrote: protobuf records in a LevelDB log."""
    import wandb.proto.wandb_internal_pb2

    kept: Any = wandb.proto.wandb_internal_pb2
    [path] = folder.glob("wandb/offline-run-*/*.wandb")
    data, position, part, records = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        part += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(kept.Record.FromString(part))
            part = b""
    return records


def test_the_real_wandb_keeps_config_and_curves_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    config = {"seed": 3, "objective": {"alpha": 0.25}}
    report = WeightsAndBiases(tmp_path, "coder-1", config)
    # A busy machine may take longer than a run would wait.
    sink = QueuedSink(report, may_fail=True, wait=lambda event, _: event.wait(120))
    for step in range(3):
        sink.put(step, {"loss/total": 2.0 - step, "val/kl": math.nan})
    sink.close()
    wandb.teardown()
    assert (sink.dropped, sink.problem) == (0, None)
    assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    records = wandb_records(tmp_path)
    [run] = [record.run for record in records if record.HasField("run")]
    assert (run.run_id, run.project) == ("coder-1", "lectern")
    kept = {entry.key: json.loads(entry.value_json) for entry in run.config.update}
    assert config.items() <= kept.items()
    lines = [
        {entry.nested_key[0]: entry.value_json for entry in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    totals = [(int(line["_step"]), float(line["loss/total"])) for line in lines]
    assert totals == [(0, 2.0), (1, 1.0), (2, 0.0)]
    assert [line["val/kl"] for line in lines] == ["NaN"] * 3
    # Nothing about this machine is sent.
    assert run.host == "lectern"
    assert {"environment", "stats", "output_raw", "files"}.isdisjoint(
        record.WhichOneof("record_type") for record in records
    )
