"""The arithmetic of memory, by a case small enough for a pencil."""

from dataclasses import replace

from lectern_common.memory_estimate import (
    Computation,
    ModelShape,
    activation_bytes,
    estimate_memory,
)

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


def test_every_part_is_what_a_pencil_gives() -> None:
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


def test_each_of_several_devices_holds_what_it_works_on_whole_beside_its_share() -> None:
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
