"""The benchmark of a student on a GPU: its arithmetic, and the whole of it on tiny models."""

import pytest

from benchmarks.trainer.gpu import QWEN_05B, Sizes, flops_of_a_token, measure

TINY = Sizes(
    {
        **QWEN_05B,
        "vocab_size": 96,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
    },
    teacher_width=48,
    lengths=(8,),
    step_tokens=16,
    objective_tokens=40,
    warm_up_steps=1,
    steps=1,
    pairs=1,
    compiled=(False,),
    peers=("plain",),
)


def test_the_flops_of_a_token_are_those_of_every_product():
    # q and o 896 x 896, k and v 896 x 128, gate, up and down 896 x 4,864.
    layer = 2 * 896 * 896 + 2 * 896 * 128 + 3 * 896 * 4_864
    student = 6 * (24 * layer + 151_936 * 896) + 6 * 24 * 896 * 1_025
    assert flops_of_a_token(QWEN_05B, 1_024, 0) == student
    assert flops_of_a_token(QWEN_05B, 1_024, 3_584) == student + 2 * 151_936 * 3_584


def test_the_benchmark_goes_through_on_a_tiny_shape():
    steps, plain = measure(TINY, "cpu")
    assert steps["figure"] == "step, 2 x 8"
    assert steps["cross_entropy_tokens_per_second"] > 0
    speed = steps["distillation_speed_against_cross_entropy"]
    assert speed == pytest.approx(
        steps["distillation_tokens_per_second"] / steps["cross_entropy_tokens_per_second"]
    )
    assert (plain["figure"], plain["against"]) == ("objective, 40 tokens", "plain")
    # One of them rounds logits to bfloat16.
    assert plain["loss_difference"] < 0.02
