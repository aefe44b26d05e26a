"""Which sequences share a forward: equal lengths, near lengths, how much padding."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from teacher_server.scheduling.batch_shapes import NearLengths, equal_lengths


def test_equal_lengths_choose_the_same_length_and_a_power_of_two() -> None:
    assert equal_lengths([5, 6, 5, 5, 7, 5], leader=2, max_tokens=100) == [2, 0, 3, 5]
    assert equal_lengths([5, 6, 5, 5], leader=0, max_tokens=100) == [0, 2]
    assert equal_lengths([5, 5, 5, 5], leader=0, max_tokens=14) == [0, 1]
    assert equal_lengths([50, 50], leader=1, max_tokens=14) == [1]


def test_near_lengths_choose_the_leader_and_its_neighbours() -> None:
    assert sorted(NearLengths()([100, 500, 101, 99, 102], 0, 1000)) == [0, 2, 3, 4]


def test_a_leader_beyond_the_budget_is_computed_alone() -> None:
    assert NearLengths()([5000, 5000, 10], 0, 1000) == [0]


@given(
    lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=80),
    max_tokens=st.integers(1, 20_000),
)
def test_a_batch_holds_its_leader_once_and_keeps_the_budget(
    lengths: list[int], max_tokens: int
) -> None:
    chosen = NearLengths()(lengths, 0, max_tokens)
    assert chosen[0] == 0 and len(set(chosen)) == len(chosen)
    longest = max(lengths[index] for index in chosen)
    assert len(chosen) == 1 or longest * len(chosen) <= max_tokens


def test_padding_over_a_long_tailed_day_stays_under_two_percent_in_few_batches() -> None:
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(5.5, 1.2, 4000), 1, 2048).astype(int).tolist()
    choose, waiting = NearLengths(), lengths[:256]
    coming, real, computed, batches = lengths[256:], 0, 0, 0
    while waiting:
        chosen = choose(waiting, 0, 8192)
        own = [waiting[index] for index in chosen]
        real, computed, batches = real + sum(own), computed + max(own) * len(own), batches + 1
        waiting = [length for index, length in enumerate(waiting) if index not in set(chosen)]
        waiting += coming[: len(chosen)]
        coming = coming[len(chosen) :]
    assert real == sum(lengths)
    assert computed / real - 1 < 0.02
    assert batches < len(lengths) / 4
