"""Texts that a model writes: those of transformers, and of a plain loop, whatever the batch."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from lectern_common.errors import Diverged, InvalidRequest
from lectern_common.spec.sections import LoraSpec
from lectern_models.loading import load_causal_lm
from student_trainer.generating import rows
from student_trainer.generating.generator import written
from student_trainer.generating.prompt import Prompt
from student_trainer.generating.sampling import Sampling, drawn_ids
from student_trainer.stop import Stop, StopRequested
from student_trainer.student.lora import add_adapters
from tests.support.models import write_tiny_model

# Different lengths, two equal prompts, and more than one group of near lengths.
IDS = [
    [5, 6, 7],
    [5, 6, 7],
    [9],
    list(range(20, 33)),
    list(range(40, 52)),
    [3, 1, 4, 1, 5],
    [*range(50, 85)],
]
ARCHITECTURES: dict[str, Any] = {
    "qwen2": {},
    "qwen3": {},
    "gpt2": {},
    "bloom": {},
    "phi": {},
    "gemma2": {"sliding_window": 6},
    "mamba": {},
    "falcon_h1": {},
}
FURTHER: dict[str, Any] = {
    "llama": {},
    "opt": {},
    "mixtral": {},
    "granite": {},
    "cohere": {},
    "olmo2": {},
}


def numbers(seed):
    return lambda count: np.random.default_rng(seed).random(count)


def prompts_of(sequences=IDS):
    return [Prompt(ids, numbers(index)) for index, ids in enumerate(sequences)]


def texts(model, prompts, sampling, *, ends=(), stop=None, **options):
    """Returns the texts in the order of their prompts."""
    found = list(written(model, prompts, sampling, ends=ends, stop=stop or Stop(), **options))
    assert sorted(one.index for one in found) == list(range(len(prompts)))
    return sorted(found, key=lambda one: one.index)


def ids_of(found):
    return [one.ids for one in found]


def opened(folder, architecture, **config):
    folder = write_tiny_model(folder, architecture, max_positions=64, **config)
    return load_causal_lm(folder, "float32")


@pytest.fixture(
    scope="module",
    params=[*ARCHITECTURES, *(pytest.param(name, marks=pytest.mark.long) for name in FURTHER)],
)
def model(request, tmp_path_factory):
    settings = ARCHITECTURES.get(request.param, {})
    return opened(tmp_path_factory.mktemp("model"), request.param, **settings)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return opened(tmp_path_factory.mktemp("model"), "qwen2")


@torch.no_grad()
def plainly(model, prompt, sampling):
    """One sequence, no cache, no padding: the definition."""
    ids, drawn = list(prompt.ids), prompt.uniforms(sampling.max_new_tokens)
    for place in range(sampling.max_new_tokens):
        logits_V = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        if sampling.temperature == 0:
            ids.append(int(logits_V.argmax()))
        else:
            chosen = drawn_ids(logits_V[None], torch.tensor([drawn[place]]), sampling)
            ids.append(int(chosen[0]))
    return ids[len(prompt.ids) :]


def by_transformers(model, ids, max_new_tokens, ends=()):
    """Returns what `generate` writes greedily after one prompt."""
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(ends) or None,
        pad_token_id=0,
    )
    whole = model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
        generation_config=settings,
    )
    return whole[0, len(ids) :].tolist()


def test_greedy_texts_are_those_of_transformers(model):
    expected = [by_transformers(model, ids, 12) for ids in IDS]
    sampling = Sampling(max_new_tokens=12)
    assert ids_of(texts(model, prompts_of(), sampling)) == expected
    assert ids_of(texts(model, prompts_of(), sampling, max_rows=2)) == expected
    ends = {one[5] for one in expected[::2]}
    for index, one in enumerate(texts(model, prompts_of(), sampling, ends=ends)):
        whole = by_transformers(model, IDS[index], 12, ends)
        assert one.ids + [one.end] * (one.end is not None) == whole


def test_a_drawn_text_is_that_of_a_plain_loop_whatever_its_batch(model):
    sampling = Sampling(0.9, top_p=0.95, top_k=60, max_new_tokens=9)
    expected = [plainly(model, prompt, sampling) for prompt in prompts_of()]
    for max_rows in (None, 3, 1):
        assert ids_of(texts(model, prompts_of(), sampling, max_rows=max_rows)) == expected
    turned = texts(model, prompts_of()[::-1], sampling, max_rows=3)
    assert ids_of(turned)[::-1] == expected


def test_texts_of_other_lengths_leave_and_join_without_a_trace(model):
    """12 texts of 1 to 12 tokens: rows leave, columns are dropped, waiting prompts join."""
    sequences = [[1 + index] * (1 + index * 15 % 36) for index in range(12)]
    sampling = Sampling(1.0, max_new_tokens=12)
    lengths = [1 + index * 7 % 12 for index in range(12)]
    expected = [
        plainly(model, prompt, sampling)[:length]
        for prompt, length in zip(prompts_of(sequences), lengths, strict=True)
    ]
    for max_rows in (None, 4):
        found = texts(
            model,
            prompts_of(sequences),
            sampling,
            max_rows=max_rows,
            is_over=lambda index, ids: len(ids) >= lengths[index],
        )
        assert ids_of(found) == expected


@pytest.mark.parametrize("max_rows", [None, 2])
def test_where_padding_cannot_be_dropped_the_longest_leaves_without_a_trace(
    qwen, monkeypatch, max_rows
):
    """Caches of unknown kinds take no rows, and keep the columns of the longest row that was."""
    monkeypatch.setattr(rows, "can_join", lambda cache: False)
    sampling = Sampling(1.0, max_new_tokens=9)
    lengths = [9, 5, 9, 7, 9, 4, 2]  # of texts; the longest prompt, the last one, leaves first
    expected = [
        plainly(qwen, prompt, sampling)[:length]
        for prompt, length in zip(prompts_of(), lengths, strict=True)
    ]
    found = texts(
        qwen,
        prompts_of(),
        sampling,
        max_rows=max_rows,
        is_over=lambda index, ids: len(ids) >= lengths[index],
    )
    assert ids_of(found) == expected


def test_a_text_is_yielded_as_soon_as_it_ends(qwen):
    lengths = [3, 9, 1, 5, 7, 2, 4]
    calls = []

    def is_over(index, ids):
        calls.append(index)
        return len(ids) >= lengths[index]

    order = []
    for one in written(
        qwen, prompts_of(), Sampling(max_new_tokens=9), ends=(), stop=Stop(), is_over=is_over
    ):
        order.append(one.index)
        # Nothing was computed for it once it had ended, nor for the others beyond its length.
        assert max(map(calls.count, range(7))) == lengths[one.index]
    assert order == [2, 5, 0, 6, 3, 4, 1]


def test_why_a_text_ended_is_said(qwen):
    whole = texts(qwen, prompts_of(), Sampling(max_new_tokens=8))
    assert all(one.is_cut and one.end is None for one in whole)
    end = whole[0].ids[3]
    for before, after in zip(
        whole, texts(qwen, prompts_of(), Sampling(max_new_tokens=8), ends=[end]), strict=True
    ):
        place = before.ids.index(end) if end in before.ids else 8
        assert after.ids == before.ids[:place]
        assert (after.end, after.is_cut) == ((end, False) if place < 8 else (None, True))
    over = texts(
        qwen, prompts_of(), Sampling(max_new_tokens=8), is_over=lambda _, ids: len(ids) == 8
    )
    assert [(one.end, one.is_cut, len(one.ids)) for one in over] == [(None, False, 8)] * len(IDS)


def test_an_end_may_be_the_first_token_and_the_last(qwen):
    [first, *_, last] = texts(qwen, prompts_of(IDS[:1]), Sampling(max_new_tokens=4))[0].ids
    [at_once] = texts(qwen, prompts_of(IDS[:1]), Sampling(max_new_tokens=4), ends=[first])
    assert (at_once.ids, at_once.end, at_once.is_cut) == ([], first, False)
    if last != first:
        [late] = texts(qwen, prompts_of(IDS[:1]), Sampling(max_new_tokens=4), ends=[last])
        assert (late.end, late.is_cut) == (last, False)


def test_barred_ids_are_never_written(qwen):
    sampling = Sampling(max_new_tokens=8)
    usual = {token for one in texts(qwen, prompts_of(), sampling) for token in one.ids}
    for drawn in (sampling, Sampling(1.0, max_new_tokens=8), Sampling(1.0, 0.5, 5, 8)):
        found = texts(qwen, prompts_of(), drawn, barred=usual)
        assert not usual & {token for one in found for token in one.ids}
    everything = range(qwen.config.vocab_size)
    with pytest.raises(Diverged):
        texts(qwen, prompts_of(), sampling, barred=everything)


def test_no_prompts_write_nothing(qwen):
    assert texts(qwen, [], Sampling()) == []


def test_what_cannot_be_continued_is_refused_at_once(qwen):
    with pytest.raises(InvalidRequest, match="prompt 1 has no tokens"):
        written(qwen, [Prompt([1]), Prompt([])], Sampling(), ends=(), stop=Stop())
    with pytest.raises(ValueError, match="no numbers"):
        written(qwen, [Prompt([1])], Sampling(1.0), ends=(), stop=Stop())
    with pytest.raises(ValueError, match="max_rows"):
        written(qwen, [Prompt([1])], Sampling(), ends=(), stop=Stop(), max_rows=0)


def test_a_stop_ends_it_between_two_tokens(qwen):
    stop = Stop()

    def is_over(_, ids):
        if len(ids) == 3:
            stop.request()
        assert len(ids) <= 3
        return False

    with pytest.raises(StopRequested):
        texts(qwen, prompts_of(), Sampling(max_new_tokens=30), is_over=is_over, stop=stop)
    assert not qwen.training


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(qwen, value, temperature):
    def spoil(_module, _inputs, output):
        output.logits[-1, :, 3] = value
        return output

    handle = qwen.register_forward_hook(spoil)
    try:
        with pytest.raises(Diverged, match=r"token 0 .* prompt 2"):
            texts(qwen, prompts_of([[5, 6, 7], [5, 6, 8], [9, 9, 9]]), Sampling(temperature))
    finally:
        handle.remove()


def test_ids_ruled_out_by_minus_infinity_are_no_error(qwen):
    def rule_out(_module, _inputs, output):
        output.logits[..., 10:] = -torch.inf
        return output

    handle = qwen.register_forward_hook(rule_out)
    try:
        found = texts(qwen, prompts_of(), Sampling(5.0, max_new_tokens=20))
    finally:
        handle.remove()
    assert {token for one in found for token in one.ids} <= set(range(10))


def test_the_model_is_as_it_was_at_every_text_and_at_the_end(tmp_path):
    model = opened(tmp_path, "gpt2", resid_pdrop=0.5)
    sampling = Sampling(0.9, max_new_tokens=8)
    expected = ids_of(texts(model, prompts_of(), sampling))
    model.train()
    model.transformer.h[0].eval()  # modes are not all the same
    modes = [module.training for module in model.modules()]
    own, settings = model.generation_config, model.generation_config.to_dict()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    lengths = [3, 8, 1, 5, 7, 2, 4]
    seen = written(
        model,
        prompts_of(),
        sampling,
        ends=(),
        stop=Stop(),
        is_over=lambda index, ids: len(ids) >= lengths[index],
    )
    for one in seen:
        assert [module.training for module in model.modules()] == modes
        assert torch.is_grad_enabled()
        assert one.ids == expected[one.index][: lengths[one.index]]  # dropout was off
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert model.generation_config is own
    assert own.to_dict() == settings
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])


def test_settings_that_a_model_comes_with_do_not_apply(qwen):
    sampling = Sampling(max_new_tokens=6)
    expected = texts(qwen, prompts_of(), sampling)
    own = qwen.generation_config
    own.update(do_sample=True, temperature=5.0, repetition_penalty=9.0, min_new_tokens=1)
    assert texts(qwen, prompts_of(), sampling) == expected
    own.update(do_sample=False, temperature=1.0, repetition_penalty=1.0, min_new_tokens=None)


def test_the_same_request_gives_the_same_texts(qwen):
    sampling = Sampling(1.0, max_new_tokens=20)
    first = list(written(qwen, prompts_of(), sampling, ends=[1, 2, 3], stop=Stop(), max_rows=3))
    again = list(written(qwen, prompts_of(), sampling, ends=[1, 2, 3], stop=Stop(), max_rows=3))
    assert first == again


def test_a_model_whose_positions_change_with_length_is_computed_anew(tmp_path):
    """Beyond 8 tokens its rotary embedding switches, also for the tokens before."""
    model = opened(
        tmp_path,
        "phi3",
        num_key_value_heads=4,
        original_max_position_embeddings=8,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [3.0] * 4,
            "original_max_position_embeddings": 8,
        },
    )
    for sampling in (Sampling(max_new_tokens=12), Sampling(1.0, max_new_tokens=12)):
        expected = [plainly(model, prompt, sampling) for prompt in prompts_of(IDS[:3])]
        assert ids_of(texts(model, prompts_of(IDS[:3]), sampling)) == expected


def test_a_model_without_a_cache_of_transformers_is_computed_anew(tmp_path):
    model = opened(tmp_path, "rwkv", attention_hidden_size=32, context_length=64)
    sampling = Sampling(1.0, max_new_tokens=6)
    expected = [plainly(model, prompt, sampling) for prompt in prompts_of(IDS[:3])]
    assert ids_of(texts(model, prompts_of(IDS[:3]), sampling)) == expected


def test_under_bfloat16_greedy_texts_are_still_those_of_transformers(tmp_path):
    folder = write_tiny_model(tmp_path, "qwen2", max_positions=64)
    narrow = load_causal_lm(folder, "bfloat16")
    expected = [by_transformers(narrow, ids, 12) for ids in IDS]
    # One row at a time: sums of other shapes round otherwise, and bfloat16 shows it.
    found = texts(narrow, prompts_of(), Sampling(max_new_tokens=12), max_rows=1)
    assert ids_of(found) == expected


def test_it_runs_under_autocast(qwen):
    sampling = Sampling(max_new_tokens=12)
    with torch.autocast("cpu", torch.bfloat16):
        expected = [by_transformers(qwen, ids, 12) for ids in IDS]
        found = texts(qwen, prompts_of(), sampling, max_rows=1)
    assert ids_of(found) == expected


def test_a_model_with_adapters_writes_with_them(tmp_path):
    model = opened(tmp_path, "qwen2")
    plain = ids_of(texts(model, prompts_of(), Sampling(max_new_tokens=12)))
    adapters = add_adapters(model, LoraSpec(rank=2, dropout=0.5), seed=1, base=None, revision=None)
    with torch.no_grad():
        for tensor in adapters.tensors().values():
            tensor.normal_(generator=torch.Generator().manual_seed(2))
    model.train()
    found = ids_of(texts(model, prompts_of(), Sampling(max_new_tokens=12)))
    assert model.training
    assert found != plain
    model.eval()
    assert found == [by_transformers(model, ids, 12) for ids in IDS]


def test_a_body_compiled_for_training_is_not_compiled_for_each_length(tmp_path):
    model = opened(tmp_path, "qwen2")
    expected = texts(model, prompts_of(), Sampling(max_new_tokens=6))

    def never(_graph, _inputs):
        raise AssertionError("compiled")

    model.get_decoder().compile(backend=never)
    assert texts(model, prompts_of(), Sampling(max_new_tokens=6)) == expected


def test_a_prompt_that_several_texts_continue_is_computed_once(qwen):
    computed = []
    handle = qwen.register_forward_pre_hook(
        lambda _module, _inputs, named: computed.append(named["input_ids"].shape), with_kwargs=True
    )
    sampling = Sampling(1.0, max_new_tokens=6)
    prompts = [Prompt([4, 5, 6], numbers(index)) for index in range(5)]
    try:
        found = ids_of(texts(qwen, prompts, sampling))
    finally:
        handle.remove()
    assert computed == [(1, 3)] + [(5, 1)] * 5
    assert found == [plainly(qwen, prompt, sampling) for prompt in prompts]
    assert len(set(map(tuple, found))) > 1


def test_what_waits_is_computed_a_few_rows_at_a_time(qwen):
    rows = []
    handle = qwen.register_forward_pre_hook(
        lambda _module, _inputs, named: rows.append(len(named["input_ids"])), with_kwargs=True
    )
    try:
        texts(
            qwen,
            prompts_of([[1 + one] * 5 for one in range(20)]),
            Sampling(max_new_tokens=5),
            max_rows=4,
        )
    finally:
        handle.remove()
    assert max(rows) == 4
