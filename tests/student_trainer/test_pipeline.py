"""Distillation from Python."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lectern_common.errors import InvalidRequest, RepresentationNotOffered, SameWeights
from lectern_common.wire.formats import Representation
from student_trainer.data.sources import ShardBatchSource, SyntheticBatchSource
from student_trainer.pipeline import Pipeline
from student_trainer.student.student import CausalStudent, FixtureStudent
from student_trainer.teacher.local import FixtureTeacher, InProcessTeacher
from tests.support.training.parts import CPU, tiny_student, tiny_teacher
from tests.support.training.shards import write_shards


def fixtures(**settings: object) -> Pipeline:
    defaults = {"epochs": 3, "batches_per_epoch": 5, "batch_size": 2, "seq_len": 4}
    return (
        Pipeline(**{**defaults, **settings})  # type: ignore[arg-type]
        .with_teacher(FixtureTeacher(8))
        .with_student(FixtureStudent(8))
        .with_batch_source(SyntheticBatchSource(8))
    )


def test_three_epochs_on_fixtures_lower_the_loss() -> None:
    """F-DISTILL-PIPELINE-001: on the same batches, before the first epoch and after the last."""
    result = fixtures(learning_rate=0.05).execute()
    losses = result.metrics["loss"]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert len(result.metrics["steps"]) == 15
    assert result.output_path is None
    assert result.duration_seconds > 0


def test_the_divergence_falls_over_the_epochs(tmp_path: Path) -> None:
    """FALSIFY-TRAIN-002: 5 % noise allowed."""
    result = (
        Pipeline(epochs=6, batches_per_epoch=8, batch_size=4, seq_len=8, learning_rate=5e-3)
        .with_teacher(tiny_teacher(tmp_path / "teacher"))
        .with_student(tiny_student(tmp_path / "student"))
        .with_batch_source(SyntheticBatchSource(40))
        .execute()
    )
    divergences = result.metrics["loss/kd"]
    for before, after in itertools.pairwise(divergences):
        assert after <= 1.05 * before
    assert divergences[-1] < 0.7 * divergences[0]


def test_shards_and_model_folders_give_a_folder_with_the_trained_student(tmp_path: Path) -> None:
    dataset = write_shards(tmp_path / "data", np.arange(500) % 40)
    tiny_student(tmp_path / "student")
    result = (
        Pipeline(learning_rate=5e-3, alpha=0.5, temperature=2.0, output_path=tmp_path / "out")
        .with_teacher(tiny_teacher(tmp_path / "teacher"), "top_k", top_k=5)
        .with_student(CausalStudent.from_pretrained(tmp_path / "student", CPU))
        .with_batch_source(ShardBatchSource.open(dataset))
        .execute()
    )
    assert result.output_path == tmp_path / "out"
    assert result.metrics["loss"][-1] < result.metrics["loss"][0]
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    metadata = json.loads((tmp_path / "out" / "distillation_metadata.json").read_text())
    assert metadata["teacher_model"] == "InProcessTeacher"
    assert (metadata["alpha"], metadata["temperature"]) == (0.5, 2.0)
    assert metadata["final_loss"] == result.metrics["loss"][-1]
    assert (metadata["epoch"], metadata["step"]) == (1, 10)


def test_a_fixture_student_is_written_too(tmp_path: Path) -> None:
    pipeline = fixtures(output_path=tmp_path / "out", learning_rate=0.05)
    pipeline.execute()
    logits = load_file(tmp_path / "out" / "model.safetensors")["logits_V"]
    assert logits.abs().sum() > 0


class Lists:
    """A teacher in the original specification's interface: lists in, lists out."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def vocab_size(self) -> int:
        return 8

    def logits_for_batch(self, input_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        self.asked += [list(sequence) for sequence in input_ids]
        return [[10.0 * (token == sequence[-1]) for token in range(8)] for sequence in input_ids]


def test_a_teacher_that_returns_lists_gives_the_same_result() -> None:
    lists: Any = Lists()  # TeacherLogitsProvider asks for more than the specification
    of_lists = fixtures(learning_rate=0.05).with_teacher(lists).execute()
    scored = fixtures(learning_rate=0.05).execute()
    assert of_lists.metrics["loss"] == pytest.approx(scored.metrics["loss"], rel=1e-6)
    # Every position was asked about: prefixes of 1, 2, 3 and 4 tokens.
    assert [len(prefix) for prefix in lists.asked[:4]] == [1, 2, 3, 4]
    with pytest.raises(RepresentationNotOffered):
        fixtures().with_teacher(lists, "top_k", top_k=2).execute()


def test_a_student_learns_from_draws_that_differ_in_every_step(tmp_path: Path) -> None:
    """The estimates before and after each epoch use the same draws on the same batches."""
    teacher = tiny_teacher(tmp_path / "teacher")
    seeds: list[int | None] = []

    class Noting:
        def score(self, sequences: Any, positions: Any, asked: Representation, t: float) -> Any:
            seeds.append(asked.seed)
            return teacher.score(sequences, positions, asked, t)

    result = (
        Pipeline(epochs=3, batches_per_epoch=4, batch_size=4, seq_len=8, learning_rate=5e-3)
        .with_teacher(Noting(), "sampled", num_draws=50)
        .with_student(tiny_student(tmp_path / "student"))
        .with_batch_source(SyntheticBatchSource(40))
        .execute()
    )
    divergences = result.metrics["loss/kd"]
    assert divergences[-1] < 0.8 * divergences[0]
    evaluated, trained = [seed for seed in seeds if seed is None], [seed for seed in seeds if seed]
    assert len(evaluated) == 4 * 4
    assert len(trained) == len(set(trained)) == 3 * 4


def test_a_number_of_draws_without_sampling_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="num_draws has no effect with representation dense"):
        Pipeline().with_teacher(FixtureTeacher(8), num_draws=5)
    with pytest.raises(InvalidRequest, match="num_draws is None; it must be 1 to 256"):
        fixtures().with_teacher(FixtureTeacher(8), "sampled").execute()


def test_pure_cross_entropy_needs_no_teacher() -> None:
    result = (
        Pipeline(alpha=1.0, learning_rate=0.05)
        .with_student(FixtureStudent(8))
        .with_batch_source(SyntheticBatchSource(3))
        .execute()
    )
    assert "loss/kd" not in result.metrics
    assert result.metrics["loss"][-1] < result.metrics["loss"][0]


def test_a_missing_part_is_named() -> None:
    with pytest.raises(InvalidRequest, match="with_teacher, with_student and with_batch_source"):
        Pipeline().with_student(FixtureStudent(8)).execute()
    with pytest.raises(InvalidRequest, match="epochs"):
        fixtures(epochs=0).execute()


def test_a_student_equal_to_its_teacher_is_refused(tmp_path: Path) -> None:
    """TEACHER-DIVERGENCE, from Python."""
    student = tiny_student(tmp_path / "student")
    pipeline = (
        Pipeline()
        .with_teacher(InProcessTeacher(tiny_student(tmp_path / "student").model))
        .with_student(student)
        .with_batch_source(SyntheticBatchSource(40))
    )
    with pytest.raises(SameWeights):
        pipeline.execute()


def test_the_source_is_reset_and_every_epoch_has_the_same_batches() -> None:
    source = SyntheticBatchSource(8)
    source.next_batch(3, 3)
    result = fixtures().with_batch_source(source).execute()
    assert result.metrics["loss"] == fixtures().execute().metrics["loss"]
    assert torch.isfinite(torch.tensor(result.metrics["loss"])).all()
