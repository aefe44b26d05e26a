"""Packed ids and codes of log-probabilities: each value against plain Python."""

import math

import numpy as np
import pytest

from lectern_common.teacher.record.bits import (
    bits_per_id,
    log_prob_codes,
    log_probs_of,
    pack_bits,
    packed_bytes,
    unpack_bits,
)

SIZES = (1, 2, 3, 256, 257, 32_768, 32_769, 151_936, 1 << 24)


@pytest.mark.parametrize("vocab_size", SIZES)
def test_an_id_has_as_many_bits_as_the_largest_needs(vocab_size):
    bits = bits_per_id(vocab_size)
    assert (vocab_size - 1) < 1 << bits
    assert bits == 1 or (vocab_size - 1) >= 1 << (bits - 1)


@pytest.mark.parametrize("vocab_size", SIZES)
@pytest.mark.parametrize("count", [1, 7, 8, 50])
def test_every_id_is_where_the_format_says(vocab_size, count):
    bits = bits_per_id(vocab_size)
    ids = np.random.default_rng(count).integers(0, vocab_size, (5, count))
    ids[0] = vocab_size - 1
    packed = pack_bits(ids, bits)
    assert packed.shape == (5, packed_bytes(count, bits))
    for row, data in zip(ids, packed, strict=True):
        # All bits of a row as one number, lowest first.
        whole = sum(int(value) << (bits * place) for place, value in enumerate(row))
        assert data.tobytes() == whole.to_bytes(packed_bytes(count, bits), "little")
    np.testing.assert_array_equal(unpack_bits(packed, count, bits), ids)


@pytest.mark.parametrize(
    ("bits", "probability", "at_most"),
    [
        (16, 1.0, 0.0),
        (16, 0.9, 2.5e-4),
        (16, 1e-9, 2.5e-4),
        (8, 1.0, 0.0),
        (8, 0.9, 0.008),
        (8, 0.5, 0.02),
        (8, 0.1, 0.04),
        (8, 1e-4, 0.08),
    ],
)
def test_a_probability_is_off_by_at_most_what_is_documented(bits, probability, at_most):
    exact = np.log(probability) * np.linspace(0.97, 1.03, 501)
    kept = log_probs_of(log_prob_codes(exact, bits), bits)
    assert np.abs(np.expm1(kept - exact)).max() <= at_most


@pytest.mark.parametrize("bits", [8, 16])
def test_codes_fall_with_the_probability_and_keep_what_is_impossible(bits):
    log_probs = np.array([1e-7, 0.0, -1e-3, -1.0, -31.0, -40.0, -1e30, -math.inf])
    codes = log_prob_codes(log_probs, bits)
    assert codes[0] == codes[1] == 0
    assert (np.diff(codes.astype(int)) >= 0).all()
    kept = log_probs_of(codes, bits)
    assert kept[-1] == -math.inf
    assert kept[-2] == kept[-3] == pytest.approx(-32, abs=1e-3)
    assert np.isfinite(kept[:-1]).all()
