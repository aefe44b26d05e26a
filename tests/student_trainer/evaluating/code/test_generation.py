"""Generated answers: equal to a plain loop without a cache, and independent of their batch."""

from collections import Counter

import pytest
import torch

from lectern_models.loading import load_causal_lm
from student_trainer.evaluating.code.generation import (
    Prompt,
    Sampling,
    answers,
    drawn_ids,
    uniforms,
)
from student_trainer.stop import Stop, StopRequested
from tests.support.models import write_tiny_model

PROMPTS = [
    Prompt("a", 0, [5, 6, 7]),
    Prompt("a", 1, [5, 6, 7]),
    Prompt("b", 0, [9]),
    Prompt("c", 0, list(range(20, 33))),
]
NEVER = lambda prompt, ids: False  # noqa: E731


@pytest.fixture(scope="module", params=["qwen2", "gpt2", "gemma2", "falcon_h1"])
def model(request, tmp_path_factory):
    folder = write_tiny_model(tmp_path_factory.mktemp("model"), request.param, max_positions=64)
    return load_causal_lm(folder, "float32")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return load_causal_lm(write_tiny_model(tmp_path_factory.mktemp("model")), "float32")


def answered(model, prompts, sampling, ends=(), is_over=NEVER, stop=None):
    return answers(model, prompts, sampling, ends=ends, is_over=is_over, stop=stop or Stop())


@torch.no_grad()
def plainly(model, prompt, sampling):
    """One sequence, no cache, no padding: the definition."""
    ids, drawn = list(prompt.ids), uniforms(sampling, prompt)
    for place in range(sampling.max_new_tokens):
        logits_V = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        if sampling.temperature == 0:
            ids.append(int(logits_V.argmax()))
        else:
            chosen = drawn_ids(logits_V[None], torch.tensor([drawn[place]]), sampling)
            ids.append(int(chosen[0]))
    return ids[len(prompt.ids) :]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_an_answer_is_that_of_a_plain_loop_whatever_its_batch(model, temperature):
    sampling = Sampling(temperature, max_new_tokens=12, seed=3)
    expected = [plainly(model, prompt, sampling) for prompt in PROMPTS]
    together = [one.ids for one in answered(model, PROMPTS, sampling)]
    assert together == expected
    assert [answered(model, [prompt], sampling)[0].ids for prompt in PROMPTS] == expected
    turned = answered(model, PROMPTS[::-1], sampling)
    assert [one.ids for one in turned][::-1] == expected


def test_samples_of_a_problem_differ_and_repeat(qwen):
    sampling = Sampling(1.0, max_new_tokens=12, seed=1)
    first, second = answered(qwen, PROMPTS[:2], sampling)
    assert first != second
    assert answered(qwen, PROMPTS[:2], sampling) == [first, second]
    assert answered(qwen, PROMPTS[:2], Sampling(1.0, max_new_tokens=12, seed=2)) != [first, second]


def test_a_model_keeps_its_own_settings_and_none_of_them_apply(qwen):
    sampling = Sampling(max_new_tokens=6)
    expected = answered(qwen, PROMPTS, sampling)
    own = qwen.generation_config
    own.update(do_sample=True, temperature=5.0, repetition_penalty=9.0, min_new_tokens=1)
    own.update(suppress_tokens=[one.ids[0] for one in expected])
    assert answered(qwen, PROMPTS, sampling) == expected
    assert qwen.generation_config is own
    own.update(do_sample=False, repetition_penalty=1.0, suppress_tokens=None, min_new_tokens=None)


def test_an_answer_ends_before_an_id_that_ends_it(qwen):
    whole = answered(qwen, PROMPTS, Sampling(max_new_tokens=8))
    end = whole[0].ids[3]
    cut = answered(qwen, PROMPTS, Sampling(max_new_tokens=8), ends=[end])
    for before, after in zip(whole, cut, strict=True):
        place = before.ids.index(end) if end in before.ids else 8
        assert after.ids == before.ids[:place]
        assert after.is_cut == (place == 8)


def test_an_answer_ends_where_it_is_said_to_be_over(qwen):
    lengths = {"a": 2, "b": 5, "c": 99}
    found = answered(
        qwen,
        PROMPTS,
        Sampling(max_new_tokens=8),
        is_over=lambda prompt, ids: len(ids) >= lengths[prompt.problem],
    )
    assert [(len(one.ids), one.is_cut) for one in found] == [
        (2, False),
        (2, False),
        (5, False),
        (8, True),
    ]


def test_a_stop_ends_it_between_two_tokens(qwen):
    stop = Stop()

    def is_over(prompt, ids):
        if len(ids) == 3:
            stop.request()
        assert len(ids) <= 3
        return False

    with pytest.raises(StopRequested):
        answered(qwen, PROMPTS, Sampling(max_new_tokens=30), is_over=is_over, stop=stop)


@pytest.mark.parametrize(
    ("u", "top_p", "expected"),
    [
        (0.0, 1.0, 0),
        (0.0999, 1.0, 0),
        (0.1001, 1.0, 1),
        (0.5999, 1.0, 1),
        (0.6001, 1.0, 3),
        (0.9999999999, 1.0, 3),
        (0.0, 0.49, 1),  # of the set {1} alone
        (0.999, 0.49, 1),
        (0.5, 0.6, 1),  # of the set {1, 3}: 0.5 / 0.9 and 0.4 / 0.9
        (0.56, 0.6, 3),
    ],
)
def test_a_number_chooses_the_id_up_to_which_the_probability_is_larger(u, top_p, expected):
    logits = torch.tensor([[0.1, 0.5, 0.0, 0.4]]).log()
    assert drawn_ids(logits, torch.tensor([u], dtype=torch.float64), Sampling(1.0, top_p)) == (
        torch.tensor([expected])
    )


def test_drawn_ids_have_the_distribution_at_the_temperature():
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.0]])
    sampling = Sampling(0.7, max_new_tokens=20_000)
    numbers = torch.from_numpy(uniforms(sampling, PROMPTS[0]))
    drawn = drawn_ids(logits.expand(len(numbers), 4), numbers, sampling).tolist()
    expected = (logits[0] / 0.7).softmax(-1).tolist()
    counts = Counter(drawn)
    for token, p in enumerate(expected):
        error = (p * (1 - p) / len(numbers)) ** 0.5
        assert counts[token] / len(numbers) == pytest.approx(p, abs=5 * error)
