"""Whole runs: training improves a student, and a teacher's faults change nothing."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState
from lectern_models.loading import build_causal_lm
from teacher_server.engine import transformers as transformers_engine
from teacher_server.engine.transformers import EngineSettings
from tests.support.servers import teacher_thread, wait_for
from tests.support.training.runs import (
    VOCAB_SIZE,
    Home,
    compared,
    curve,
    events_of,
    lines_of,
    status_of,
    trained,
)
from tests.support.training.shards import write_shards
from tests.support.training.wire_teacher import (
    PROBES,
    Serving,
    WireTeacher,
    broken_after,
    of_training,
    refused,
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("home"))
    steps = np.random.default_rng(5).choice([1, 2, 3], 20_000, p=[0.7, 0.2, 0.1])
    write_shards(home.path / "data" / "long", np.cumsum(steps) % VOCAB_SIZE, vocab_size=VOCAB_SIZE)
    home.model("big", weights=False, hidden=32, layers=2)
    return home


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(folder.export_path / "model.safetensors")


# ---- training --------------------------------------------------------------------------------


def test_training_changes_every_tensor_and_the_export_has_them(home: Home) -> None:
    """FALSIFY-TRAIN-001."""
    home.model("tied", weights=False, tied=True)
    folder = home.run(student={"config": "tied"}, seed=4)
    assert trained(home, folder) == 0
    initial = build_causal_lm(home.path / "models" / "tied", seed=4)
    loaded = AutoModelForCausalLM.from_pretrained(folder.export_path)
    after = dict(loaded.named_parameters())
    assert len(after) > 5
    for name, tensor in initial.named_parameters():
        assert not torch.equal(tensor, after[name]), name
    newest = sorted(folder.checkpoints_path.glob("step-*"))[-1]
    saved = load_file(newest / "model.safetensors")
    for name, tensor in after.items():
        assert torch.equal(saved[f"model.{name}"], tensor), name
    # Head and embedding stay tied.
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


@pytest.fixture(scope="module")
def taught(home: Home) -> Iterator[str]:
    """The address of Lectern's own server, with a model trained on the long data."""
    folder = home.run(
        "teacher",
        student={"config": "big"},
        data={"path": "long"},
        schedule={"steps": 150, "warmup_steps": 10},
        batch={"sequences_per_step": 16},
        evaluation={"every_steps": 150},
        checkpoint={"every_steps": 1000},
    )
    assert trained(home, folder) == 0
    engine = transformers_engine.load(
        str(folder.export_path), EngineSettings(dtype="float32", device="cpu")
    )
    with teacher_thread(engine) as address:
        yield address


def student_run(home: Home, name: str, **sections: Any) -> RunFolder:
    folder = home.run(
        name,
        data={"path": "long"},
        schedule={"steps": 60, "warmup_steps": 5},
        batch={"sequences_per_step": 8},
        evaluation={"every_steps": 30},
        checkpoint={"every_steps": 1000},
        **sections,
    )
    assert trained(home, folder) == 0, status_of(folder).message
    return folder


@pytest.mark.long
def test_a_distilled_student_beats_pure_cross_entropy(home: Home, taught: str) -> None:
    """FALSIFY-TRAIN-009: same size, steps, rows and initial weights; through the real server."""
    alone = student_run(home, "alone")
    objective = {"alpha": 0, "temperature": 1.0}
    hidden = student_run(
        home, "hidden", objective=objective, teacher={"address": taught, "representation": "hidden"}
    )
    top_k = student_run(
        home,
        "top-k",
        objective=objective,
        teacher={"address": taught, "representation": "top_k", "top_k": 8},
    )
    sampled = student_run(
        home,
        "sampled",
        objective=objective,
        teacher={"address": taught, "representation": "sampled", "num_draws": 30},
    )
    starts = {curve(folder, "loss/val")[0] for folder in (alone, hidden, top_k, sampled)}
    assert len(starts) == 1
    for distilled in (hidden, top_k, sampled):
        assert curve(distilled, "loss/val")[-1] < curve(alone, "loss/val")[-1] - 0.1

    # A token costs its row on the wire plus under 2 % (hidden: 32 float32; top_k: 8 k + 8).
    for folder, row_bytes in ((hidden, 32 * 4), (top_k, 8 * 8 + 8)):
        lines = lines_of(folder)[1:]
        positions = sum(line["wire/positions"] for line in lines)
        received = sum(line["wire/received_bytes"] for line in lines)
        # For 60 steps and two evaluations; the last one comes after the last step.
        [assembled] = events_of(folder, "assembled")
        assert positions == 60 * 8 * 8 + 2 * assembled["validation_rows"] * 8
        assert received >= positions * row_bytes
        # A micro-batch of 64 rows is small: allow its fixed cost besides the 2 %.
        assert received <= positions * row_bytes * 1.02 + (60 + 50) * 160
    # Sampled: 8 bytes per distinct id, fewer than the draws, and 4 for the row's length.
    per_token = [
        line["wire/bytes_per_token"] for line in lines_of(sampled)[1:] if line["wire/positions"]
    ]
    assert 8 + 4 < max(per_token) < 0.8 * (30 * 8 + 4)


def test_dense_and_hidden_through_the_real_server_give_one_curve(home: Home, taught: str) -> None:
    """fp32: within 1e-5 at the first step, within 1e-3 at each."""
    objective = {"alpha": 0.3, "temperature": 2.0}
    dense, hidden = (
        curve(
            student_run(
                home,
                f"curve-{kind}",
                objective=objective,
                teacher={"address": taught, "representation": kind},
            ),
            "loss/total",
        )
        for kind in ("dense", "hidden")
    )
    difference = np.abs(np.subtract(dense, hidden))
    assert difference[0] <= 1e-5
    assert difference.max() <= 1e-3


# ---- a teacher's faults --------------------------------------------------------------------------


def distilling(serving: Serving, representation: str) -> dict[str, Any]:
    kind: dict[str, Any] = {"representation": representation}
    if representation == "top_k":
        kind["top_k"] = 8
    return {
        "teacher": {"address": serving.address, **kind},
        "objective": {"alpha": 0.5, "temperature": 2.0},
        "schedule": {"steps": 12, "warmup_steps": 2},
        "batch": {"sequences_per_step": 4, "micro_batch_sequences": 2},
        "evaluation": {"every_steps": 6},
        "checkpoint": {"every_steps": 100},
    }


def require_same(one: RunFolder, other: RunFolder) -> None:
    assert compared(one) == compared(other)
    assert (one.export_path / "model.safetensors").read_bytes() == (
        other.export_path / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("representation", ["dense", "hidden", "top_k", "sampled"])
def test_streams_that_break_midway_change_no_bit(home: Home, representation: str) -> None:
    with Serving(WireTeacher()) as serving:
        sections = distilling(serving, representation)
        undisturbed = home.run(f"whole-{representation}".replace("_", "-"), **sections)
        assert trained(home, undisturbed) == 0
        teacher = serving.teacher
        teacher.faults += [None] * PROBES + [broken_after(2, teacher), None]
        # The first evaluation asks 13 times, with draws 26: break some of these and later ones.
        teacher.faults += [broken_after(0, teacher)] + [None] * 30
        teacher.faults += [broken_after(5, teacher), broken_after(1, teacher)]
        # For the probe, three evaluations and 12 steps.
        asked = len(teacher.requests)
        disturbed = home.run(f"broken-{representation}".replace("_", "-"), **sections)
        assert trained(home, disturbed) == 0
        assert len(teacher.requests) - asked == asked + 4
    require_same(disturbed, undisturbed)


def test_an_outage_midway_changes_no_bit_and_is_reported(home: Home) -> None:
    with Serving(WireTeacher()) as serving:
        sections = distilling(serving, "hidden")
        undisturbed = home.run("without-outage", **sections)
        assert trained(home, undisturbed) == 0

        held = threading.Event()
        away = refused(grpc.StatusCode.UNAVAILABLE, "going down")

        def break_off(request: Any, context: Any) -> Iterator[Any]:
            yield from serving.teacher.answer(request)[:2]
            held.set()
            context.abort(grpc.StatusCode.UNAVAILABLE, "going down")

        serving.teacher.takes_fault = of_training
        serving.teacher.faults += [None] * (PROBES + 11) + [break_off] + [away] * 1000
        folder = home.run("with-outage", **sections)

        def take_down_and_up() -> None:
            assert held.wait(60)
            serving.down()
            wait_for(lambda: status_of(folder).state is RunState.WAITING_FOR_TEACHER)
            serving.teacher.faults.clear()
            serving.up()

        thread = threading.Thread(target=take_down_and_up)
        thread.start()
        assert trained(home, folder) == 0
        thread.join(60)
    require_same(folder, undisturbed)
    states = [event["state"] for event in events_of(folder, "state")]
    assert states[:2] == ["starting", "running"]
    assert "waiting_for_teacher" in states
    assert states[-2:] == ["running", "succeeded"]


def test_a_busy_teacher_delays_a_run_and_changes_no_bit(home: Home) -> None:
    with Serving(WireTeacher()) as serving:
        sections = distilling(serving, "top_k")
        undisturbed = home.run("not-full", **sections)
        assert trained(home, undisturbed) == 0
        busy = refused(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "queue full",
            lectern_reason="overloaded",
            grpc_retry_pushback_ms="10",
        )
        serving.teacher.faults += [busy, None, busy, busy, busy]
        folder = home.run("full", **sections)
        assert trained(home, folder) == 0
    require_same(folder, undisturbed)
    assert "waiting_for_teacher" not in [event["state"] for event in events_of(folder, "state")]


def test_another_model_in_place_of_the_teacher_ends_the_run(home: Home, tmp_path: Path) -> None:
    """T4: refused before any loss is computed from it."""
    with Serving(WireTeacher()) as serving:

        def other(request: Any, context: Any) -> Iterator[Any]:
            yield from WireTeacher(seed=8).answer(request)

        serving.teacher.takes_fault = of_training
        serving.teacher.faults += [None] * (PROBES + 9) + [other] * 50
        sections = distilling(serving, "hidden")
        sections["teacher"]["prefetch_steps"] = 0  # the n-th answer is for the n-th request
        folder = home.run("usurped", **sections)
        assert trained(home, folder) == 1
    status = status_of(folder)
    assert (status.state, status.reason) == (RunState.FAILED, "wrong_model")
    assert str(status.message).startswith(f"the teacher at {serving.address} is not the one")
    # Steps of two micro-batches: the right model answered four, and these steps are kept.
    assert status.step == status.checkpoint_step == 4
