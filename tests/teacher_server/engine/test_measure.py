"""The rate that is measured at start, on a clock that a fake model moves."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from lectern_common.errors import Misconfigured, TeacherOutOfMemory
from teacher_server.engine.fixture import FixtureEngine
from teacher_server.engine.measure import longest_sequence, measured_tokens_per_second, rate
from teacher_server.engine.seam import ComputedRows, ModelFacts, SequenceAsk


class Model:
    """Takes `each` seconds a token and `fixed` a forward; ten times that for a new length."""

    def __init__(self, each: float, fixed: float = 0.0, sequences: int = 1) -> None:
        self.now = 100.0
        self.lengths: list[int] = []
        self._each, self._fixed, self._sequences = each, fixed, sequences

    def clock(self) -> float:
        return self.now

    def score(self, length: int) -> int:
        tokens = length * self._sequences
        seconds = self._fixed + self._each * tokens
        self.now += seconds if length in self.lengths else 10 * seconds
        self.lengths.append(length)
        return tokens

    def rate(self, longest: int = 1024, seconds: float = 1.0) -> float:
        return rate(self.score, longest, seconds, self.clock)


def test_a_fast_model_is_measured_at_full_length_for_the_whole_time() -> None:
    model = Model(each=1e-5)
    assert model.rate() == pytest.approx(1e5)
    counted = [length for length in model.lengths if length == 1024]
    assert len(counted) > 40
    assert 1.0 <= model.now - 100.0 < 1.2


def test_the_first_forward_of_a_length_does_not_count() -> None:
    assert Model(each=1e-4).rate() == pytest.approx(1e4)
    assert Model(each=1e-4).rate(longest=16) == pytest.approx(1e4)


def test_a_slow_model_is_measured_at_a_shorter_length() -> None:
    model = Model(each=2e-3)  # 16 tokens: 0.32 s at first, then 0.032
    assert model.rate() == pytest.approx(500)
    assert max(model.lengths) < 64
    assert model.now - 100.0 < 1.5


def test_a_very_slow_model_takes_only_two_forwards_of_16_tokens() -> None:
    model = Model(each=1.0)
    assert model.rate() == pytest.approx(1.0)
    assert model.lengths == [16, 16]


def test_sequences_are_no_longer_than_the_model_allows() -> None:
    model = Model(each=1e-6, fixed=1e-4)
    model.rate(longest=100)
    assert max(model.lengths) == 100
    short = Model(each=1e-3)
    assert short.rate(longest=3) == pytest.approx(1000)
    assert set(short.lengths) == {3}


class Counting(FixtureEngine):
    """The fixture with other facts; records the shapes that it was asked for."""

    def __init__(self, **facts: Any) -> None:
        super().__init__(97)
        self._own = dataclasses.replace(super().facts, **facts)
        self.shapes: list[tuple[int, int]] = []
        self.tokens_that_fit = 1 << 30
        self.now = 0.0

    @property
    def facts(self) -> ModelFacts:
        return self._own

    def score(self, asks: Sequence[SequenceAsk]) -> list[ComputedRows]:
        shape = (len(asks), asks[0].num_tokens)
        self.shapes.append(shape)
        assert all(ask.num_tokens == shape[1] for ask in asks)
        assert all((ask.token_ids_S < 97).all() for ask in asks)
        self.now += 0.01
        if shape[0] * shape[1] > self.tokens_that_fit:
            raise TeacherOutOfMemory("too many")
        return super().score(asks)

    def measured(self, batch_tokens: int) -> float:
        return measured_tokens_per_second(self, batch_tokens, clock=lambda: self.now)


def test_independent_is_measured_one_sequence_a_forward() -> None:
    engine = Counting(mode="independent", max_positions=None)
    assert engine.measured(16_384) == pytest.approx(1024 / 0.01)
    assert {sequences for sequences, _ in engine.shapes} == {1}


def test_throughput_is_measured_in_batches_of_its_budget() -> None:
    engine = Counting(mode="throughput", max_positions=128)
    assert engine.measured(1024) == pytest.approx(1024 / 0.01)
    assert engine.shapes[-1] == (8, 128)
    assert all(sequences * length == 1024 for sequences, length in engine.shapes)


def test_a_batch_that_does_not_fit_is_measured_one_sequence_at_a_time() -> None:
    engine = Counting(mode="throughput", max_positions=128)
    engine.tokens_that_fit = 1000
    assert engine.measured(1024) == pytest.approx(128 / 0.01)
    assert engine.shapes[-1] == (1, 128)
    engine.tokens_that_fit = 0
    assert engine.measured(1024) == 0.0


class Short(Counting):
    """Fails beyond a length that its facts do not name, as an embedding of positions does."""

    def __init__(self, positions: int, error: Exception, **facts: Any) -> None:
        super().__init__(max_positions=None, **facts)
        self._positions, self._error = positions, error

    def score(self, asks: Sequence[SequenceAsk]) -> list[ComputedRows]:
        if asks[0].num_tokens > self._positions:
            raise self._error
        return super().score(asks)


@pytest.mark.parametrize("positions", [1, 7, 96, 128, 1023])
@pytest.mark.parametrize("error", [IndexError("index out of range in self"), RuntimeError("size")])
@pytest.mark.parametrize("mode", ["independent", "throughput"])
def test_a_limit_that_no_config_names_is_found_by_trying(
    mode: str, error: Exception, positions: int
) -> None:
    engine = Short(positions, error, mode=mode)
    with pytest.raises(type(error)):
        engine.measured(4096)
    assert longest_sequence(engine) == positions


def test_a_model_that_computes_nothing_is_refused() -> None:
    with pytest.raises(Misconfigured, match=r"cannot compute a single token: no kernel"):
        longest_sequence(Short(0, RuntimeError("no kernel")))


def test_the_tokens_differ_from_one_another() -> None:
    """Equal tokens would all go to the same experts."""
    seen: list[np.ndarray] = []

    class Keeping(Counting):
        def score(self, asks: Sequence[SequenceAsk]) -> list[ComputedRows]:
            seen.extend(ask.token_ids_S for ask in asks)
            return super().score(asks)

    Keeping(mode="throughput", max_positions=64).measured(256)
    assert len(np.unique(np.concatenate(seen))) > 60
