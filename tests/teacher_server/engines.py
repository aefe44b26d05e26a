"""Engines whose forwards a test holds back, counts, or breaks."""

import threading

import numpy as np

from teacher_server.engine import SequenceAsk
from teacher_server.fixture_engine import FixtureEngine


class GatedEngine(FixtureEngine):
    """The fixture; each forward waits for a permit and is recorded by its first token id."""

    def __init__(self, vocab_size: int = 97) -> None:
        super().__init__(vocab_size)
        self.permits = threading.Semaphore(0)
        self.begun: list[int] = []
        self.threads: set[str] = set()

    def score(self, ask: SequenceAsk) -> memoryview:
        self.begun.append(int(ask.token_ids_S[0]))
        self.threads.add(threading.current_thread().name)
        if not self.permits.acquire(timeout=60):
            raise TimeoutError("no permit came")
        return super().score(ask)

    def allow(self, forwards: int) -> None:
        self.permits.release(forwards)


class BreakingEngine(FixtureEngine):
    """The fixture; a sequence that starts with token 13 raises `error`."""

    def __init__(self, error: Exception, vocab_size: int = 97) -> None:
        super().__init__(vocab_size)
        self.error = error

    def score(self, ask: SequenceAsk) -> memoryview:
        if ask.token_ids_S[0] == 13:
            raise self.error
        return super().score(ask)


def one_hot(token: int, vocab_size: int) -> np.ndarray:
    row = np.zeros(vocab_size, np.float32)
    row[token] = 1
    return row
