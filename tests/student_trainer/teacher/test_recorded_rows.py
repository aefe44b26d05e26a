"""Recorded rows: what comes back, value by value, against float64."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lectern_common.errors import CorruptData, TeacherError
from lectern_common.teacher.record.bits import bits_per_id
from lectern_common.teacher.record.manifest import RecordFormat
from lectern_models.logits.output_head import HeadTransform, OutputHead
from student_trainer.targets import HiddenTargets, SampledTargets, TeacherTargets, TopKTargets
from student_trainer.teacher.recorded import smaller_top_k
from student_trainer.teacher.recorded_rows import RowMeaning, codec_of

V, D, N = 300, 24, 9


def head() -> OutputHead:
    generator = torch.Generator().manual_seed(5)
    return OutputHead(torch.randn(V, D, generator=generator), None, HeadTransform(1.0, 1.0, None))


def meaning(**changes) -> RowMeaning:
    return RowMeaning(**{"vocab_size": V, "hidden_size": D, "hidden_dtype": "float32", **changes})


def top_k_targets(k: int, temperature: float = 2.0, spread: float = 3.0) -> TopKTargets:
    logits = torch.randn(N, V, generator=torch.Generator().manual_seed(1)) * spread
    values, ids = logits.sort(dim=-1, descending=True)
    return TopKTargets(
        values[:, :k],
        ids[:, :k],
        (values[:, k:] / temperature).logsumexp(-1),
        (logits / temperature).logsumexp(-1),
        temperature,
        V,
    )


def probabilities(targets: TopKTargets) -> tuple[np.ndarray, np.ndarray]:
    """Returns p of the k ids and of the rest, in float64."""
    normalizer = targets.log_normalizer_t_N.double()[:, None]
    kept = (targets.logits_NK.double() / targets.temperature - normalizer).exp()
    rest = (targets.log_rest_t_N.double() - normalizer[:, 0]).exp()
    return kept.numpy(), rest.numpy()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_hidden_states_come_back_bit_by_bit(dtype):
    hidden = torch.randn(N, D, generator=torch.Generator().manual_seed(2)) * 1e3
    hidden = hidden.to(getattr(torch, dtype))
    codec = codec_of(RecordFormat(name="hidden"), meaning(hidden_dtype=dtype, head=head()))
    data = codec.encode(HiddenTargets(hidden, head()))
    assert len(data) == N * D * hidden.element_size()
    back = codec.decode(data, N)
    assert isinstance(back, HiddenTargets)
    assert back.hidden_ND.dtype is hidden.dtype
    assert torch.equal(back.hidden_ND, hidden)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 448.0, 449.0, 6e4])
def test_eight_bit_hidden_states_are_off_by_at_most_a_sixteenth(dtype, size):
    hidden = torch.randn(N, D, generator=torch.Generator().manual_seed(3))
    hidden = (hidden / hidden.abs().amax(-1, keepdim=True) * size).to(getattr(torch, dtype))
    codec = codec_of(RecordFormat(name="hidden_fp8"), meaning(hidden_dtype=dtype, head=head()))
    data = codec.encode(HiddenTargets(hidden, head()))
    assert len(data) == N * (D + 1)
    back = codec.decode(data, N)
    assert isinstance(back, HiddenTargets)
    assert back.hidden_ND.dtype is hidden.dtype
    exact, kept = hidden.double(), back.hidden_ND.double()
    exponent = torch.from_numpy(data.reshape(N, D + 1)[:, 0].view(np.int8).astype(np.float64))
    least = torch.exp2(exponent - 10)[:, None]
    assert bool(((kept - exact).abs() <= torch.maximum(exact.abs() / 16, least)).all())
    # The scale is the least power of two that fits.
    assert bool((exact.abs().amax(-1) <= 448 * torch.exp2(exponent)).all())
    assert bool((exact.abs().amax(-1) > 224 * torch.exp2(exponent)).all())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_largest_values_of_a_dtype_come_back_finite(dtype):
    most = torch.finfo(getattr(torch, dtype)).max
    hidden = torch.zeros(1, 6, dtype=getattr(torch, dtype))
    hidden[0, 0], hidden[0, 1], hidden[0, 2] = most, -most, most / 3
    of = meaning(hidden_size=6, hidden_dtype=dtype, head=head())
    codec = codec_of(RecordFormat(name="hidden_fp8"), of)
    back = codec.decode(codec.encode(HiddenTargets(hidden, head())), 1)
    assert isinstance(back, HiddenTargets)
    torch.testing.assert_close(back.hidden_ND, hidden, rtol=1 / 16, atol=0)


def test_rows_of_zeros_are_zeros():
    codec = codec_of(RecordFormat(name="hidden_fp8"), meaning(head=head()))
    back = codec.decode(codec.encode(HiddenTargets(torch.zeros(2, D), head())), 2)
    assert isinstance(back, HiddenTargets)
    assert not bool(back.hidden_ND.any())


@pytest.mark.parametrize(("bits", "at_most"), [(16, 4.9e-4), (8, 0.16)])
@pytest.mark.parametrize("k", [1, 5, 64])
def test_the_likeliest_ids_come_back_with_the_mass_of_the_rest(k, bits, at_most):
    targets = top_k_targets(k)
    form = RecordFormat(name="top_k", top_k=k, log_prob_bits=bits)
    codec = codec_of(form, meaning(temperature=2.0))
    data = codec.encode(targets)
    assert form.row_bytes(V, D, "float32") == len(data) / N
    assert len(data) / N == math.ceil(k * bits_per_id(V) / 8) + k * bits // 8 + 4
    back = codec.decode(data, N)
    assert isinstance(back, TopKTargets)
    assert torch.equal(back.ids_NK, targets.ids_NK)
    kept, rest = probabilities(back)
    exact, exact_rest = probabilities(targets)
    np.testing.assert_allclose(rest, exact_rest, rtol=1e-6)  # the mass of the rest is not rounded
    np.testing.assert_allclose(kept.sum(-1) + rest, 1, atol=1e-6)
    assert np.abs(kept / exact - 1).max() <= at_most


def test_a_rest_without_mass_and_ids_that_are_ruled_out_stay_so():
    logits = torch.tensor([[2.0, 1.0, -math.inf]])
    targets = TopKTargets(
        logits, torch.tensor([[7, 299, 0]]), torch.tensor([-math.inf]), logits.logsumexp(-1), 1.0, V
    )
    codec = codec_of(RecordFormat(name="top_k", top_k=3, log_prob_bits=8), meaning())
    back = codec.decode(codec.encode(targets), 1)
    assert isinstance(back, TopKTargets)
    assert back.log_rest_t_N.tolist() == [-math.inf]
    assert back.logits_NK[0, 2] == -math.inf
    kept, _ = probabilities(back)
    assert kept.sum() == pytest.approx(1, abs=1e-6)
    assert kept[0, 0] / kept[0, 1] == pytest.approx(math.e, rel=0.03)


def test_a_rest_with_all_the_mass_is_kept():
    targets = TopKTargets(
        torch.tensor([[-20.0]]), torch.tensor([[3]]), torch.tensor([0.0]), torch.tensor([0.0]), 1, V
    )
    codec = codec_of(RecordFormat(name="top_k", top_k=1, log_prob_bits=16), meaning())
    back = codec.decode(codec.encode(targets), 1)
    assert isinstance(back, TopKTargets)
    kept, rest = probabilities(back)
    assert rest[0] == 1
    assert kept[0, 0] == pytest.approx(math.exp(-20), rel=1e-3)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_fewer_of_the_likeliest_ids_have_the_others_in_the_rest(k):
    fewer = smaller_top_k(top_k_targets(10), k)
    exactly = top_k_targets(k)
    assert torch.equal(fewer.ids_NK, exactly.ids_NK)
    assert torch.equal(fewer.logits_NK, exactly.logits_NK)
    torch.testing.assert_close(fewer.log_rest_t_N, exactly.log_rest_t_N, rtol=1e-6, atol=1e-6)


def draws() -> SampledTargets:
    rows: list[tuple[list[int], list[int], list[float]]] = [
        ([3], [10], [-0.1]),
        ([0, 7, 299], [1, 8, 1], [-9.5, -0.25, -3.0]),
        ([5, 6], [5, 5], [-1, -1]),
    ]
    return SampledTargets(
        torch.tensor([i for ids, _, _ in rows for i in ids]),
        torch.tensor([c for _, counts, _ in rows for c in counts]),
        torch.tensor([p for _, _, log_probs in rows for p in log_probs]),
        np.array([0, 1, 4, 6]),
        10,
        1.5,
        V,
    )


def test_draws_come_back_with_their_counts():
    form = RecordFormat(name="sampled", num_draws=10, log_prob_bits=16)
    codec = codec_of(form, meaning(temperature=1.5))
    data = codec.encode(draws())
    assert len(data) == 3 + math.ceil(6 * bits_per_id(V) / 8) + 6 + 12
    back = codec.decode(data, 3)
    assert isinstance(back, SampledTargets)
    assert torch.equal(back.ids_R, draws().ids_R)
    assert torch.equal(back.counts_R, draws().counts_R)
    np.testing.assert_array_equal(back.row_starts, draws().row_starts)
    torch.testing.assert_close(back.log_probs_R, draws().log_probs_R, rtol=0, atol=2.5e-4)
    assert (back.num_draws, back.temperature, back.vocab_size) == (10, 1.5, V)


CASES: list[tuple[RecordFormat, TeacherTargets]] = [
    (RecordFormat(name="top_k", top_k=5, log_prob_bits=16), top_k_targets(5, 1.5)),
    (RecordFormat(name="hidden"), HiddenTargets(torch.ones(3, D), head())),
    (RecordFormat(name="hidden_fp8"), HiddenTargets(torch.ones(3, D), head())),
    (RecordFormat(name="sampled", num_draws=10, log_prob_bits=16), draws()),
]


@pytest.mark.parametrize(("form", "targets"), CASES, ids=[form.name for form, _ in CASES])
def test_rows_of_another_length_are_refused(form, targets):
    codec = codec_of(form, meaning(temperature=1.5, head=head()))
    data = codec.encode(targets)
    with pytest.raises(CorruptData):
        codec.decode(data[:-1], len(targets))


def test_other_answers_than_the_format_holds_are_refused():
    codec = codec_of(RecordFormat(name="top_k", top_k=4, log_prob_bits=16), meaning())
    for targets in (top_k_targets(5), draws(), HiddenTargets(torch.zeros(1, D), head())):
        with pytest.raises(TeacherError):
            codec.encode(targets)


def test_formats_name_the_parameters_that_they_need(tmp_path: Path):
    for fields in ({"name": "top_k"}, {"name": "hidden", "top_k": 3}, {"name": "sampled"}):
        with pytest.raises(ValueError, match="format"):
            RecordFormat(**fields)
