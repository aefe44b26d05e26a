"""Weights & Biases: what it is given, and what it keeps, offline."""

import json
import math
import signal
import struct
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from lectern_common.errors import Misconfigured
from student_trainer.metric_sinks import QueuedSink
from student_trainer.weights_and_biases import WeightsAndBiases


class FakeRun:
    """Stands for wandb.init and the run that it returns."""

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


def test_weights_and_biases_gets_numbers_by_step_under_the_runs_own_id(tmp_path: Path) -> None:
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


def test_a_missing_wandb_is_refused_with_what_to_install(
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


def test_wandb_itself_keeps_config_and_curves_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    config = {"seed": 3, "objective": {"alpha": 0.25}}
    report = WeightsAndBiases(tmp_path, "coder-1", config)
    # A machine with much else to do may take longer than a run would wait.
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
    # Nothing of this machine goes along.
    assert run.host == "lectern"
    assert {"environment", "stats", "output_raw", "files"}.isdisjoint(
        record.WhichOneof("record_type") for record in records
    )
