"""Draws: reproducible from seed and tokens, never of the impossible, equal to plain numpy's."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lectern_common.errors import InvalidRequest
from lectern_models.logits.sampled import Draws, draw, uniforms

torch.set_num_threads(1)

TOKENS = np.array([5, 90_000, 2, 2, 7, 0, 2**32 - 1], np.uint32)
EVERY = np.ones(7, bool)
LARGEST_UNIFORM = 1 - 2.0**-53


def rows_of(draws: Draws) -> list[tuple[list[int], list[int], list[float]]]:
    """Returns (ids, counts, log-probabilities) of each row."""
    lengths = draws.row_lengths_C.tolist()
    columns = [
        [part.tolist() for part in torch.split(column, lengths)]
        for column in (draws.ids_R, draws.counts_R, draws.log_probs_R)
    ]
    return list(zip(*columns, strict=True))


def by_numpy(
    logits_V: npt.NDArray[Any], uniforms_U: npt.NDArray[Any], temperature: float
) -> tuple[list[int], list[int], list[float]]:
    """Returns the same, draw by draw: the first id whose cumulative probability exceeds u."""
    scaled_V = logits_V.astype(np.float64) / temperature
    weights_V = np.exp(scaled_V - scaled_V.max())
    cumulative_V = np.cumsum(weights_V)
    drawn = [int(np.argmax(cumulative_V > u * cumulative_V[-1])) for u in uniforms_U]
    ids, counts = np.unique(drawn, return_counts=True)
    log_probs = np.log(weights_V[ids] / weights_V.sum()).astype(np.float32)
    return ids.tolist(), counts.tolist(), log_probs.tolist()


# ---- uniforms ------------------------------------------------------------------------------------


def test_uniforms_are_shake_256_of_seed_and_tokens_by_hand() -> None:
    hashed = b"lectern draws 1\n" + (9).to_bytes(8, "little") + TOKENS[:3].tobytes()
    words = np.frombuffer(hashlib.shake_256(hashed).digest(16), "<u8")
    expected = [int(word) // 2**11 / 2**53 for word in words]
    assert uniforms(9, TOKENS, np.arange(7) == 2, 2).tolist() == [expected]


def test_uniforms_are_the_same_on_every_machine() -> None:
    """Recorded numbers: a change here changes every sampled run."""
    first = uniforms(2**64 - 1, TOKENS, EVERY, 3)
    assert first.shape == (7, 3)
    assert first.dtype == np.float64
    assert hashlib.sha256(first.tobytes()).hexdigest() == (
        "21073f0fc66c1cab001b66a22c93cba289cd507bef352ba2aa6a7e9d04a8d79a"
    )


def test_uniforms_of_a_position_depend_only_on_seed_and_tokens_up_to_it() -> None:
    whole = uniforms(1, TOKENS, EVERY, 4)
    for position in range(7):
        alone = np.arange(7) == position
        assert np.array_equal(uniforms(1, TOKENS, alone, 4)[0], whole[position])
        assert np.array_equal(
            uniforms(1, TOKENS[: position + 1], alone[: position + 1], 4)[0], whole[position]
        )
    last_changed = TOKENS.copy()
    last_changed[-1] = 1
    assert np.array_equal(uniforms(1, last_changed, EVERY, 4)[:-1], whole[:-1])
    assert not (uniforms(1, last_changed, EVERY, 4)[-1] == whole[-1]).any()
    first_changed = TOKENS.copy()
    first_changed[0] = 6
    assert not (uniforms(1, first_changed, EVERY, 4) == whole).any()
    assert not (uniforms(2, TOKENS, EVERY, 4) == whole).any()


def test_more_uniforms_begin_with_the_same_ones() -> None:
    assert np.array_equal(uniforms(1, TOKENS, EVERY, 256)[:, :50], uniforms(1, TOKENS, EVERY, 50))


def test_uniforms_are_uniform() -> None:
    tokens = np.arange(2000, dtype=np.uint32)
    values = uniforms(3, tokens, np.ones(2000, bool), 100).ravel()
    assert 0 <= values.min() < values.max() < 1
    counts = np.histogram(values, bins=100, range=(0, 1))[0]
    # 200,000 in 100 bins: chi-squared with 99 degrees of freedom, of which 1 in 10,000 is over 158.
    assert np.sum((counts - 2000.0) ** 2 / 2000) < 158
    rows = values.reshape(2000, 100)
    assert abs(np.corrcoef(rows[:-1].ravel(), rows[1:].ravel())[0, 1]) < 0.01


# ---- draws ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    vocab=st.integers(1, 60),
    num_draws=st.integers(1, 256),
    spread=st.sampled_from([0.0, 0.1, 3.0, 100.0]),
    temperature=st.sampled_from([0.05, 1.0, 2.0, 50.0]),
)
def test_draws_equal_those_of_plain_numpy(
    seed: int, vocab: int, num_draws: int, spread: float, temperature: float
) -> None:
    generator = np.random.default_rng(seed)
    logits = (spread * generator.standard_normal((3, vocab))).astype(np.float32)
    values = generator.random((3, num_draws))
    ours = rows_of(draw(torch.from_numpy(logits), torch.from_numpy(values), temperature))
    for (ids, counts, log_probs), row, row_uniforms in zip(ours, logits, values, strict=True):
        expected = by_numpy(row, row_uniforms, temperature)
        assert (ids, counts) == expected[:2]
        assert log_probs == pytest.approx(expected[2], rel=1e-6, abs=1e-9)
        assert sum(counts) == num_draws
        assert ids == sorted(set(ids))
        assert max(log_probs) <= 0


@pytest.mark.parametrize("value", [0.0, 0.5, LARGEST_UNIFORM])
@pytest.mark.parametrize(
    ("row", "possible"),
    [
        ([-1e4, 0.0, -1e4], [1]),
        ([-1e4, -1e4, 3.0, 3.0, -1e4, -1e4], [2, 3]),
        ([0.0, -1e4], [0]),
        ([-1e4, 0.0], [1]),
        ([-np.inf, 1.0, -np.inf], [1]),
        ([-800.0, 0.0, 0.0, 0.0, -800.0], [1, 2, 3]),
    ],
)
def test_an_id_of_probability_zero_is_never_drawn(
    row: list[float], possible: list[int], value: float
) -> None:
    uniforms_11 = torch.tensor([[value]], dtype=torch.float64)
    [(ids, counts, log_probs)] = rows_of(draw(torch.tensor([row]), uniforms_11, 1.0))
    expected = {0.0: possible[0], LARGEST_UNIFORM: possible[-1]}
    assert ids[0] == expected.get(value, ids[0])
    assert ids[0] in possible
    assert counts == [1]
    assert log_probs == pytest.approx([-np.log(len(possible))])


def test_the_last_possible_id_takes_the_largest_uniform_of_any_row() -> None:
    """u times the total must not round up to the total itself."""
    logits = torch.randn(500, 300, generator=torch.Generator().manual_seed(0)) * 5
    logits[:, 200:] = -1e4
    ids = draw(logits, torch.full((500, 1), LARGEST_UNIFORM, dtype=torch.float64), 1.0).ids_R
    assert ids.max() < 200


def test_frequencies_are_the_probabilities() -> None:
    logits = torch.tensor([[0.0, 1.0, -2.0, 3.0, 0.5, -1e4]])
    values = uniforms(4, np.arange(2000, dtype=np.uint32), np.ones(2000, bool), 256)
    draws = draw(logits.expand(2000, -1), torch.from_numpy(values), 1.5)
    counts = torch.zeros(6, dtype=torch.int64).scatter_add_(0, draws.ids_R, draws.counts_R)
    expected = 2000 * 256 * torch.softmax(logits[0].double() / 1.5, -1)
    # Chi-squared with 4 degrees of freedom: 1 in 10,000 is over 23.5.
    assert (((counts - expected) ** 2 / expected)[:5]).sum() < 23.5
    assert counts[5] == 0


def test_rows_do_not_depend_on_their_chunk() -> None:
    logits = 3 * torch.randn(20, 1000, generator=torch.Generator().manual_seed(1))
    values = torch.rand(20, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    whole = rows_of(draw(logits, values, 2.0))
    for size in (1, 3, 7):
        chunks = zip(torch.split(logits, size), torch.split(values, size), strict=True)
        assert [row for chunk in chunks for row in rows_of(draw(*chunk, 2.0))] == whole


def test_a_likely_id_keeps_the_digits_of_its_log_probability() -> None:
    """log p = -log(1 + e^-25) is not lost next to a large logit."""
    values = torch.tensor([[0.5]], dtype=torch.float64)
    [(ids, _, log_probs)] = rows_of(draw(torch.tensor([[5000.0, 4975.0]]), values, 1.0))
    assert ids == [0]
    assert log_probs == pytest.approx([-np.log1p(np.exp(-25.0))], rel=1e-4, abs=0)


def test_inputs_are_left_unchanged() -> None:
    for dtype in (torch.float32, torch.float64):
        logits, values = torch.randn(4, 9, dtype=dtype), torch.rand(4, 5, dtype=torch.float64)
        kept = logits.clone(), values.clone()
        draw(logits, values, 3.0)
        assert torch.equal(logits, kept[0])
        assert torch.equal(values, kept[1])


@pytest.mark.parametrize("temperature", [1e-300, 5e-324])
@pytest.mark.parametrize("sign", [1, -1])
def test_quotients_out_of_range_are_blamed_on_the_temperature(
    temperature: float, sign: int
) -> None:
    logits = sign * torch.tensor([[1e10, 2e10]])
    with pytest.raises(InvalidRequest, match="out of float64's range") as refusal:
        draw(logits, torch.zeros(1, 1, dtype=torch.float64), temperature)
    assert refusal.value.field == "temperature"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("vocab", [50, 151_936])
def test_cuda_draws_what_the_cpu_draws(vocab: int) -> None:
    logits = 3 * torch.randn(8, vocab, generator=torch.Generator().manual_seed(3))
    values = torch.rand(8, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    cpu, cuda = draw(logits, values, 2.0), draw(logits.cuda(), values, 2.0)
    assert torch.equal(cuda.ids_R.cpu(), cpu.ids_R)
    assert torch.equal(cuda.counts_R.cpu(), cpu.counts_R)
    torch.testing.assert_close(cuda.log_probs_R.cpu(), cpu.log_probs_R, rtol=1e-6, atol=1e-7)
    chunks = zip(torch.split(logits.cuda(), 1), torch.split(values, 1), strict=True)
    assert [row for chunk in chunks for row in rows_of(draw(*chunk, 2.0))] == rows_of(cuda)
