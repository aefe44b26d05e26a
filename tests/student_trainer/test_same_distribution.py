"""TEACHER-DIVERGENCE: a student that begins as its teacher is refused, however it came to be so."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lectern_common.errors import SameWeights
from lectern_common.spec_sections import LoraSpec
from lectern_common.weights import safetensors_files, weights_sha256
from lectern_models.loading import load_causal_lm
from student_trainer.kept_layers import keep_every_nth_layer
from student_trainer.loop import train
from student_trainer.lora import add_adapters
from student_trainer.objective import Objective
from student_trainer.run_parts import Progress, Teaching
from student_trainer.same_distribution import require_something_to_learn
from student_trainer.students import CausalStudent
from student_trainer.targets import Representation
from student_trainer.teachers import InProcessTeacher
from tests.models import write_tiny_model
from tests.student_trainer.parts import VOCAB_SIZE, parts_of, settings_of
from tests.student_trainer.runs import Home, status_of, trained
from tests.student_trainer.wire_teacher import Serving, WireTeacher

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
def test_new_adapters_on_the_teachers_weights_are_the_teacher(folder: Path, kind: str) -> None:
    """TEACHER-DIVERGENCE: found by what it computes, whatever its weights are called."""
    teacher = InProcessTeacher(load_causal_lm(folder, "float32"))
    parts = parts_of(adapted(folder, dropout=0.3), teacher=teacher, kind=kind, validation=None)
    with pytest.raises(SameWeights, match="already gives the teacher's distribution"):
        train(parts, settings_of(2, objective=KD), Progress())

    allowed = Teaching(teacher, Representation(kind), allow_same_weights=True)
    parts = parts_of(adapted(folder), teaching=allowed, validation=None)
    assert train(parts, settings_of(1, objective=KD), Progress())


def test_some_of_the_teachers_layers_are_another_model(folder: Path) -> None:
    """TEACHER-DIVERGENCE: there is something to learn from the whole."""
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
def test_the_hash_of_the_weights_says_it_before_anything_is_asked(
    tmp_path: Path, student: dict[str, Any], refused: bool
) -> None:
    """TEACHER-DIVERGENCE: the trainer itself holds them against each other."""
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


def test_what_the_criterion_looks_at() -> None:
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
