"""The memory estimate, checked by hand on a small case, and the messages if it does not fit."""

from dataclasses import replace
from pathlib import Path

import psutil

from lectern_common.checks.needs.memory import (
    Computation,
    FreeMemory,
    MemoryEstimate,
    ModelShape,
    activation_bytes,
    estimate_memory,
    free_host_bytes,
    memory_fit,
)
from lectern_common.words import GIB

# Two layers of 5 wide queries, 3 wide keys, an MLP of 7; a head of 11 x 4.
SHAPE = ModelShape(
    num_parameters=1000,
    num_trainable=900,
    num_layers=2,
    hidden_size=4,
    mlp_size=7,
    query_size=5,
    key_size=3,
    num_heads=2,
    vocab_size=11,
    num_outside=100,
    num_largest_layer=450,
)
# 2 x 8 tokens, in chunks of 6.
COMPUTED = Computation(sequences=2, seq_len=8, chunk_tokens=6)


def test_every_part_equals_the_computation_by_hand() -> None:
    estimate = estimate_memory(
        SHAPE, replace(COMPUTED, head_bytes=440, answer_bytes=500, steps_ahead=3)
    )
    numbers_a_layer = 6 * 4 + 2 * 5 + 2 * 3 + 4 * 7 + 2
    assert estimate.parts() == {
        "parameters": 4000,
        "gradients": 3600,
        "optimizer": 7200,
        "teacher_head": 440,
        "gathered": 0,
        "activations": 4 * 16 * (2 * numbers_a_layer + 5 * 4),
        "objective": 4 * (4 * 6 * 11 + 11 * 4),
        "answers": 2000,
    }
    assert estimate.certain == 4000 + 3600 + 7200 + 440
    assert estimate.on_device == estimate.certain + estimate.activations + estimate.objective
    assert estimate.total == estimate.on_device + 2000


def test_devices_share_parameters_gradients_and_moments_and_nothing_else() -> None:
    alone = estimate_memory(SHAPE, replace(COMPUTED, head_bytes=440)).parts()
    shared = estimate_memory(SHAPE, replace(COMPUTED, head_bytes=440, devices=3)).parts()
    assert [shared[name] for name in ("parameters", "gradients", "optimizer")] == [1334, 1200, 2400]
    for name in ("teacher_head", "activations", "objective"):
        assert shared[name] == alone[name]


def test_each_of_several_devices_also_holds_the_parameters_that_it_gathers() -> None:
    shared = estimate_memory(SHAPE, replace(COMPUTED, devices=3))
    assert shared.gathered == 4 * (100 + 450)
    rest = sum(shared.parts().values()) - shared.gathered - shared.answers
    assert shared.on_device == rest + shared.gathered
    assert shared.certain == 1334 + 1200 + 2400  # an update is made on shares alone


def test_frozen_parameters_have_neither_gradients_nor_moments() -> None:
    estimate = estimate_memory(replace(SHAPE, num_trainable=10), COMPUTED)
    assert (estimate.parameters, estimate.gradients, estimate.optimizer) == (4000, 40, 80)


def test_a_chunk_is_no_larger_than_the_micro_batch() -> None:
    whole = estimate_memory(SHAPE, replace(COMPUTED, chunk_tokens=10**6))
    assert whole.objective == 4 * (4 * 16 * 11 + 11 * 4)


def test_checkpointing_keeps_one_layer_whole_and_the_inputs_of_all() -> None:
    numbers_a_layer = 6 * 4 + 2 * 5 + 2 * 3 + 4 * 7 + 2
    kept = activation_bytes(SHAPE, replace(COMPUTED, checkpointing=True))
    assert kept == 4 * 16 * (numbers_a_layer + 2 * 4 + 5 * 4)


def test_16_bits_halve_what_is_not_a_norm_and_add_the_casts() -> None:
    norms = 4 * 4 * 4 + 5 * 4 * 2
    layer = norms + 2 * (2 * 5 + 2 * 3 + 4 * 7) + 4 * 2
    cast_weights = 2 * (1000 - 11 * 4)
    kept = activation_bytes(SHAPE, replace(COMPUTED, compute_bytes=2))
    assert kept == 16 * (2 * layer + 4 * 5 * 4) + cast_weights


def test_scores_grow_with_the_square_of_the_row() -> None:
    fused = activation_bytes(SHAPE, COMPUTED)
    kept = activation_bytes(replace(SHAPE, keeps_scores=True), COMPUTED)
    assert kept - fused == 2 * (4 * 2 * 2 * 8) * 16


# ---- does it fit? -----------------------------------------------------------------------------

NEEDS = MemoryEstimate(
    parameters=1 * GIB,
    gradients=1 * GIB,
    optimizer=2 * GIB,
    teacher_head=0,
    gathered=0,
    activations=3 * GIB,
    objective=1 * GIB,
    answers=1 * GIB,
)
GPU = FreeMemory("cuda:0", 9 * GIB, 2 * GIB)


def cpu(gib: float) -> FreeMemory:
    return FreeMemory("cpu", int(gib * GIB), int(gib * GIB))


def test_a_run_that_fits_has_neither_problem_nor_warning() -> None:
    fit = memory_fit(NEEDS, cpu(9))
    assert (fit.needed_bytes, fit.problem, fit.warning) == (9 * GIB, None, None)
    assert memory_fit(NEEDS, GPU).needed_bytes == 8 * GIB  # answers are the host's


def test_the_certain_part_is_refused_with_its_parts_and_what_to_set() -> None:
    fit = memory_fit(NEEDS, cpu(3.99))
    assert fit.problem == (
        "the student needs 4.00 GiB of memory to train (parameters 1.00 GiB, gradients 1.00 GiB, "
        "optimizer 2.00 GiB), but only 3.99 GiB is free on cpu; choose a smaller student, set "
        "student.lora"
    )
    assert memory_fit(NEEDS, cpu(4)).problem is None
    gpu = memory_fit(replace(NEEDS, teacher_head=6 * GIB), GPU).problem
    assert gpu is not None
    assert "teacher head 6.00 GiB" in gpu
    assert "raise device.count, or choose another teacher.representation" in gpu


def test_only_activations_are_a_warning() -> None:
    fit = memory_fit(NEEDS, cpu(8.9))
    assert fit.problem is None
    assert fit.warning == (
        "the run may need 9.00 GiB of memory (activations 3.00 GiB), but only 8.90 GiB is free "
        "on cpu; lower batch.micro_batch_sequences, or set device.activation_checkpointing"
    )


def test_answers_are_in_the_hosts_memory() -> None:
    fit = memory_fit(replace(NEEDS, answers=3 * GIB), GPU)
    assert fit.warning is not None and "lower teacher.prefetch_steps" in fit.warning
    assert memory_fit(replace(NEEDS, answers=2 * GIB), GPU).warning is None


def test_processes_share_the_hosts_memory_and_have_a_gpu_each() -> None:
    assert memory_fit(NEEDS, cpu(12), processes=3).problem is None
    refused = memory_fit(NEEDS, cpu(11.9), processes=3).problem
    assert refused is not None and "needs 12.00 GiB" in refused
    assert memory_fit(NEEDS, GPU, processes=3).problem is None
    assert memory_fit(NEEDS, GPU, processes=3).warning is not None  # 3 GiB of answers on one host


def test_a_containers_limit_holds_and_cached_files_do_not_count(tmp_path: Path) -> None:
    assert abs(free_host_bytes(tmp_path) - psutil.virtual_memory().available) < GIB
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 400000\ninactive_file 300000\n")
    assert free_host_bytes(tmp_path) == 400_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_host_bytes(tmp_path) > 1_000_000
