"""The estimate of a run, compared with numbers computed by hand."""

from typing import Any

import pytest

from lectern_common.checks.needs.estimate import RowCounts, computation_of, estimate_run
from lectern_common.checks.needs.memory import ModelShape
from lectern_common.spec.load import parse_spec
from lectern_common.spec.run_spec import RunSpec
from protos import teacher_pb2

SHAPE = ModelShape(
    num_parameters=5000,
    num_trainable=1000,
    num_layers=2,
    hidden_size=4,
    mlp_size=7,
    query_size=5,
    key_size=3,
    num_heads=2,
    vocab_size=100,
    num_outside=400,
    num_largest_layer=2300,
)
MODEL = teacher_pb2.Model(
    hidden_size=64,
    hidden_dtype=teacher_pb2.DTYPE_BFLOAT16,
    measured_tokens_per_second=1000.0,
    head_transform=teacher_pb2.HeadTransform(has_bias=True),
)


def spec(**sections: Any) -> RunSpec:
    body = {
        "name": "run",
        "teacher": {},
        "student": {"init": "student"},
        "data": {"path": "text", "seq_len": 50},
        "schedule": {"steps": 450},
        "batch": {"sequences_per_step": 8, "micro_batch_sequences": 2},
        **sections,
    }
    return parse_spec({key: value for key, value in body.items() if value is not None})


def test_tokens_epochs_and_hours() -> None:
    estimate = estimate_run(spec(), RowCounts(900, 30), MODEL, SHAPE, 100)
    assert (estimate.tokens_per_step, estimate.tokens) == (400, 180_000)
    assert estimate.epochs == 4.0
    # Evaluations before the first step, at 100, 200, 300 and 400, and after the last.
    assert estimate.teacher_tokens == 180_000 + 6 * 30 * 50
    assert estimate.teacher_hours == 189 / 3600


def test_a_resumed_run_counts_only_the_remaining_steps() -> None:
    estimate = estimate_run(spec(), RowCounts(900, 30), MODEL, SHAPE, 100, first_step=250)
    assert (estimate.first_step, estimate.tokens) == (250, 80_000)
    assert estimate.epochs == 200 * 8 / 900
    # Evaluations at 300 and 400, and after the last.
    assert estimate.teacher_tokens == 80_000 + 3 * 30 * 50
    assert estimate.checkpoints == 1


def test_unknown_figures_are_none() -> None:
    alone = spec(teacher=None, objective={"alpha": 1})
    estimate = estimate_run(alone, None, None, None, None)
    assert estimate.epochs is None
    assert estimate.wire is None
    assert estimate.teacher_hours is None
    assert (estimate.teacher_tokens, estimate.checkpoint_bytes) == (0, None)
    assert estimate.disk_bytes is None
    assert estimate_run(spec(), None, None, SHAPE, 100).wire is None
    unmeasured = teacher_pb2.Model(hidden_size=64, hidden_dtype=teacher_pb2.DTYPE_FLOAT32)
    assert estimate_run(spec(), RowCounts(1, 1), unmeasured, SHAPE, 100).teacher_hours is None


@pytest.mark.parametrize(
    ("teacher", "row", "head", "at_most"),
    [
        ({"representation": "hidden"}, 128, 2 * 100 * 65, False),
        ({"representation": "dense"}, 400, 0, False),
        ({"representation": "top_k", "top_k": 10}, 88, 0, False),
        ({"representation": "sampled", "num_draws": 50}, 400, 0, True),
        ({"representation": "sampled", "num_draws": 200}, 800, 0, True),  # of 100 ids
    ],
)
def test_the_wire_by_representation(
    teacher: dict[str, Any], row: int, head: int, at_most: bool
) -> None:
    wire = estimate_run(spec(teacher=teacher), RowCounts(900, 30), MODEL, SHAPE, 100).wire
    assert wire is not None
    assert (wire.bytes_per_token, wire.bytes_per_step) == (row, 400 * row)
    assert (wire.head_bytes, wire.at_most) == (head, at_most)


def test_a_checkpoint_holds_the_trained_weights_and_their_moments() -> None:
    kept = {"keep_last": 3, "keep_best": 2, "every_steps": 10}
    estimate = estimate_run(spec(checkpoint=kept), RowCounts(900, 30), MODEL, SHAPE, 100)
    assert (estimate.checkpoint_bytes, estimate.checkpoints) == (12_000, 6)
    assert estimate.disk_bytes == 6 * 12_000 + 20_000
    rare = estimate_run(
        spec(checkpoint={"every_steps": 300}), RowCounts(900, 30), MODEL, SHAPE, 100
    )
    assert rare.checkpoints == 2


def test_a_device_computes_its_share() -> None:
    run = spec(device={"count": 2, "activation_checkpointing": True})
    computed = computation_of(run, MODEL, 100, 77, on_cuda=True)
    assert (computed.sequences, computed.seq_len, computed.devices) == (2, 50, 2)
    assert (computed.compute_bytes, computed.checkpointing, computed.chunk_tokens) == (2, True, 77)
    assert computed.head_bytes == 2 * 100 * 65
    assert (computed.answer_bytes, computed.steps_ahead) == (4 * 50 * 128, 4)


def test_the_cpu_converts_the_head_to_float32_and_computes_in_it() -> None:
    computed = computation_of(spec(objective={"chunk_tokens": 5}), MODEL, 100, 77, on_cuda=False)
    assert computed.head_bytes == 4 * 100 * 65
    assert (computed.compute_bytes, computed.chunk_tokens) == (4, 5)
    narrow = spec(student={"init": "student", "dtype": "bfloat16"})
    assert computation_of(narrow, MODEL, 100, 77, on_cuda=False).compute_bytes == 2
    assert computation_of(narrow, None, 100, 77, on_cuda=False).head_bytes == 0
    top_k = computation_of(spec(teacher={"representation": "top_k"}), MODEL, 100, 77, on_cuda=False)
    assert top_k.head_bytes == 0
