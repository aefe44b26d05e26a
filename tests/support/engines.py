"""Engines whose forwards a test holds back, counts, or breaks."""

import dataclasses
import threading
from collections.abc import Callable, Sequence

import numpy as np

from lectern_common.errors import TeacherOutOfMemory
from teacher_server.engine.fixture import FixtureEngine
from teacher_server.engine.seam import ComputedRows, ModelFacts, NoLongerWanted, SequenceAsk


class GatedEngine(FixtureEngine):
    """The fixture; each forward waits for a permit and is recorded by its first token id."""

    def __init__(self, vocab_size: int = 97) -> None:
        super().__init__(vocab_size)
        self.permits = threading.Semaphore(0)
        self.begun: list[int] = []
        self.threads: set[str] = set()

    def score(self, asks: Sequence[SequenceAsk]) -> list[ComputedRows]:
        (ask,) = asks  # it offers no hidden states
        self.begun.append(int(ask.token_ids_S[0]))
        self.threads.add(threading.current_thread().name)
        if not self.permits.acquire(timeout=60):
            raise TimeoutError("no permit came")
        return super().score(asks)

    def allow(self, forwards: int) -> None:
        self.permits.release(forwards)


class BreakingEngine(FixtureEngine):
    """The fixture; a sequence that starts with token 13 raises `error`."""

    def __init__(self, error: Exception, vocab_size: int = 97) -> None:
        super().__init__(vocab_size)
        self.error = error

    def score(self, asks: Sequence[SequenceAsk]) -> list[ComputedRows]:
        if any(ask.token_ids_S[0] == 13 for ask in asks):
            raise self.error
        return super().score(asks)


class HiddenEngine(FixtureEngine):
    """Offers hidden states: those of a position are float32 (its token id, the position).

    `dense` is derived from them as the fixture's. A forward waits for a permit where `gated`, and
    is recorded as its sequences' first tokens; one of more than `memory_tokens` has no room.
    """

    def __init__(
        self,
        vocab_size: int = 97,
        *,
        mode: str = "independent",
        gated: bool = False,
        memory_tokens: int = 1 << 30,
    ) -> None:
        super().__init__(vocab_size)
        self._own_facts = dataclasses.replace(
            super().facts,
            hidden_size=2,
            mode=mode,
            not_offered={**super().facts.not_offered, "hidden": None},
        )
        self.permits = threading.Semaphore(0 if gated else 1 << 30)
        self.memory_tokens = memory_tokens
        self.forwards: list[list[int]] = []
        self.lengths: list[list[int]] = []
        self.derivations = 0

    @property
    def facts(self) -> ModelFacts:
        return self._own_facts

    def score(self, asks: Sequence[SequenceAsk]) -> list[ComputedRows]:
        self.forwards.append([int(ask.token_ids_S[0]) for ask in asks])
        self.lengths.append([ask.num_tokens for ask in asks])
        if not self.permits.acquire(timeout=60):
            raise TimeoutError("no permit came")
        if sum(ask.num_tokens for ask in asks) > self.memory_tokens:
            raise TeacherOutOfMemory("no room")
        return [_hidden_rows(ask) for ask in asks]

    def derived(
        self, rows: ComputedRows, ask: SequenceAsk, wanted: Callable[[], bool]
    ) -> ComputedRows:
        self.derivations += 1
        if not wanted():
            raise NoLongerWanted
        return super().score([ask])[0]

    def allow(self, forwards: int) -> None:
        self.permits.release(forwards)


def _hidden_rows(ask: SequenceAsk) -> ComputedRows:
    hidden_S2 = np.stack([ask.token_ids_S, np.arange(ask.num_tokens)], axis=1).astype("<f4")
    return ComputedRows(hidden_S2.data.cast("B"))


def one_hot(token: int, vocab_size: int) -> np.ndarray:
    row = np.zeros(vocab_size, np.float32)
    row[token] = 1
    return row
