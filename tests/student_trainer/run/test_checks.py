"""Checks before the first update: memory, the teacher's answers, something to learn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lectern_common.checks.needs.memory import FreeMemory, MemoryEstimate
from lectern_common.errors import Misconfigured, SameWeights
from lectern_common.spec.sections import LoraSpec
from lectern_common.tokens.weights import safetensors_files, weights_sha256
from lectern_common.wire.formats import Representation
from lectern_common.words import GIB
from lectern_models.loading import load_causal_lm
from student_trainer.batch import Batch
from student_trainer.objective.loss import Objective
from student_trainer.run.checks import (
    check_before_training,
    free_memory,
    require_memory,
    require_something_to_learn,
)
from student_trainer.run.loop import train
from student_trainer.run.parts import Progress, Teaching
from student_trainer.student.layers import keep_every_nth_layer
from student_trainer.student.lora import add_adapters
from student_trainer.student.student import CausalStudent
from student_trainer.teacher.local import InProcessTeacher
from tests.support.models import write_tiny_model
from tests.support.training.parts import VOCAB_SIZE, parts_of, settings_of
from tests.support.training.runs import Home, events_of, status_of, trained
from tests.support.training.wire_teacher import Serving, WireTeacher

ESTIMATE = MemoryEstimate(
    parameters=1 * GIB,
    gradients=1 * GIB,
    optimizer=2 * GIB,
    teacher_head=1 * GIB,
    gathered=0,
    activations=3 * GIB,
    objective=1 * GIB,
    answers=0,
)


def free(gib: float) -> FreeMemory:
    return FreeMemory("cpu", int(gib * GIB), int(gib * GIB))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


def distilling(address: str, **teacher: Any) -> dict[str, Any]:
    return {
        "teacher": {"address": address, **teacher},
        "objective": {"alpha": 0.5},
        "schedule": {"steps": 2, "warmup_steps": 0},
        "evaluation": {"every_steps": 100, "max_sequences": 4},
    }


def test_a_certain_need_that_does_not_fit_is_refused() -> None:
    with pytest.raises(
        Misconfigured, match=r"needs 5\.00 GiB .* only 4\.90 GiB is free on cpu; choose"
    ):
        require_memory(ESTIMATE, free(4.9))
    assert require_memory(ESTIMATE, free(10))["warning"] is None
    told = require_memory(ESTIMATE, free(5.1))
    assert "lower batch.micro_batch_sequences" in told["warning"]
    assert (told["free"], told["activations"]) == (int(5.1 * GIB), 3 * GIB)


def test_memory_that_the_run_already_holds_counts_as_free() -> None:
    cpu = torch.device("cpu")
    assert free_memory(cpu, 1 << 50).device_bytes > 1 << 50
    assert free_memory(cpu).is_host


@pytest.mark.parametrize("here", [1, 2])
def test_host_memory_is_shared_only_by_the_ranks_of_this_machine(
    home: Home, monkeypatch: pytest.MonkeyPatch, here: int
) -> None:
    """Of four ranks: torchrun has started the others on other machines."""
    cpu, held = torch.device("cpu"), list[int]()
    student = CausalStudent.from_pretrained(home.model("counted"), cpu)
    bytes_of_one = 4 * sum(p.numel() for p in student.parameters())

    def room_for_the_shares_of_one(_device: torch.device, held_bytes: int) -> FreeMemory:
        held.append(held_bytes)
        return FreeMemory("cpu", bytes_of_one + 8, bytes_of_one + 8)

    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    monkeypatch.setattr("student_trainer.run.checks.free_memory", room_for_the_shares_of_one)
    spec = home.spec("counted", device={"kind": "cpu", "count": 4})
    rows = Batch(np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int64))

    def check() -> None:
        check_before_training(spec, student, None, rows, cpu, asks_teacher=False)

    if here == 1:
        check()  # a quarter of parameters, gradients and two moments
    else:
        with pytest.raises(Misconfigured, match="the student needs"):
            check()
    assert held == [here * bytes_of_one]


def test_an_assembled_run_reports_its_memory_and_the_probe(home: Home) -> None:
    with Serving(WireTeacher()) as serving:
        folder = home.run(**distilling(serving.address, representation="top_k", top_k=5))
        assert trained(home, folder) == 0
        asked = len(serving.teacher.requests)
    (event,) = events_of(folder, "assembled")
    assert event["memory"]["parameters"] == 4 * event["parameters"]
    assert event["memory"]["optimizer"] == 8 * event["parameters"]
    assert event["memory"]["answers"] == 5 * 4 * 8 * (8 * 5 + 8)  # steps x rows x tokens x record
    assert event["memory"]["free"] > event["memory"]["parameters"]
    assert event["memory"]["warning"] is None
    assert event["probe"] == "top_k at 8 positions is consistent and agrees with dense"
    assert asked > 3
    requests = serving.teacher.requests
    first = requests[0]
    assert list(first.sequence_lengths) == [8, 8]
    assert requests[1].token_ids == first.token_ids[32:] + first.token_ids[:32]
    assert (first.vocab_size, first.temperature) == (VOCAB_SIZE, 2.0)


def test_a_run_without_a_teacher_probes_nothing(home: Home) -> None:
    folder = home.run(schedule={"steps": 1, "warmup_steps": 0})
    assert trained(home, folder) == 0
    (event,) = events_of(folder, "assembled")
    assert "probe" not in event and event["memory"]["teacher_head"] == 0


def test_inconsistent_answers_end_the_run_before_its_first_step(home: Home) -> None:
    """Its head does not match its logits."""

    class OtherHead(WireTeacher):
        def GetOutputHead(self, request: Any, context: Any) -> Any:
            own, self.head_VD = self.head_VD, self.head_VD * 1.5
            yield from super().GetOutputHead(request, context)
            self.head_VD = own

    with Serving(OtherHead(seed=11)) as serving:
        folder = home.run(**distilling(serving.address, representation="hidden"))
        assert trained(home, folder) == 1
    status = status_of(folder)
    assert (status.state, status.reason, status.step) == ("failed", "teacher_error", 0)
    assert status.message is not None
    assert "the teacher's answers are inconsistent at row 0, position" in status.message
    assert not folder.metrics_path.exists() or not folder.metrics_path.read_text()


def test_a_resumed_run_does_not_probe_again(home: Home, tmp_path: Path) -> None:
    with Serving(WireTeacher(seed=12)) as serving:
        folder = home.run(**distilling(serving.address, representation="dense"))
        assert trained(home, folder) == 0
        serving.teacher.requests.clear()
        spec = folder.read_spec()
        schedule = spec.schedule.model_copy(update={"steps": 3})
        folder.write_spec(spec.model_copy(update={"schedule": schedule}))
        assert trained(home, folder, resume=True) == 0
        kinds = {request.representation.kind for request in serving.teacher.requests}
    assert len(events_of(folder, "assembled")) == 2
    assert "probe" not in events_of(folder, "assembled")[1]
    assert len(kinds) == 1  # no top_k to compare with


KD = Objective(alpha=0.0, temperature=2.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    return write_tiny_model(folder, vocab_size=VOCAB_SIZE, hidden=16, layers=3, seed=4)


def adapted(folder: Path, dropout: float = 0.0) -> CausalStudent:
    model = load_causal_lm(folder, "float32")
    adapters = add_adapters(
        model,
        LoraSpec(rank=2, alpha=4.0, dropout=dropout),
        seed=0,
        base=None,
        revision=None,
    )
    return CausalStudent(model, torch.float32, adapters)


@pytest.mark.parametrize("kind", ["dense", "hidden"])
def test_new_adapters_on_the_teachers_weights_equal_the_teacher(folder: Path, kind: str) -> None:
    """TEACHER-DIVERGENCE: found by its distribution, whatever its weights are called."""
    teacher = InProcessTeacher(load_causal_lm(folder, "float32"))
    parts = parts_of(adapted(folder, dropout=0.3), teacher=teacher, kind=kind, validation=None)
    with pytest.raises(SameWeights, match="already matches the teacher's distribution"):
        train(parts, settings_of(2, objective=KD), Progress())

    allowed = Teaching(teacher, Representation(kind), allow_same_weights=True)
    parts = parts_of(adapted(folder), teaching=allowed, validation=None)
    assert train(parts, settings_of(1, objective=KD), Progress())


def test_a_student_of_some_of_the_teachers_layers_differs_from_it(folder: Path) -> None:
    """TEACHER-DIVERGENCE: a student of some layers can learn from the whole model."""
    teacher = InProcessTeacher(load_causal_lm(folder, "float32"))
    model = load_causal_lm(folder, "float32")
    keep_every_nth_layer(model, 2)
    parts = parts_of(CausalStudent(model), teacher=teacher, validation=None)
    assert train(parts, settings_of(1, objective=KD), Progress())


@pytest.mark.parametrize(
    ("student", "refused"),
    [
        ({}, True),
        ({"lora": {"rank": 2}}, True),
        ({"keep_every_nth_layer": 2}, False),
        ({"keep_every_nth_layer": 2, "lora": {"rank": 2}}, False),
    ],
)
def test_equal_weight_hashes_are_refused_before_any_request(
    tmp_path: Path, student: dict[str, Any], refused: bool
) -> None:
    """TEACHER-DIVERGENCE: the trainer itself compares the hashes."""
    home = Home(tmp_path)
    digest = weights_sha256(safetensors_files(home.model("whole", layers=3, seed=4)))
    with Serving(WireTeacher(weights_sha256=digest)) as serving:
        run = home.run(
            student={"config": None, "init": "whole", **student},
            teacher={"address": serving.address},
            objective={"alpha": 0.5},
            schedule={"steps": 1, "warmup_steps": 0},
        )
        assert trained(home, run) == (1 if refused else 0)
        asked = len(serving.teacher.requests)
    assert (status_of(run).reason == "same_weights") is refused
    assert (asked == 0) is refused


def test_the_criterion_of_something_to_learn() -> None:
    def unasked() -> float:
        raise AssertionError("forward KL is for jsd alone")

    hot = Objective(alpha=0.0, temperature=10.0)
    require_something_to_learn(1.1e-7, hot, unasked)  # times T^2
    require_something_to_learn(-1e-3, KD, unasked)  # an estimate from draws
    for kd in (9e-8, 0.0, -9e-8):
        with pytest.raises(SameWeights):
            require_something_to_learn(kd, hot, unasked)
    edge = Objective(alpha=0.0, temperature=1.0, divergence="jsd", beta=1e-6)
    require_something_to_learn(1e-9, edge, lambda: 1e-3)
    with pytest.raises(SameWeights):
        require_something_to_learn(1e-9, edge, lambda: 1e-9)
