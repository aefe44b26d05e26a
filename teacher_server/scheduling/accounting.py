"""Counts what the server has done since it started, in total and per run. Event loop only."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

# Run ids come from clients: beyond this many, those idle longest are forgotten.
MAX_RUNS = 1000

_RATE_WINDOW_SECONDS = 60.0


@dataclass
class RunAccount:
    """Work charged to one run; fields as in the proto's RunStats.

    `tokens` need not be whole: runs share forwards.
    """

    requests: int = 0
    tokens: float = 0.0
    sent_bytes: int = 0
    compute_seconds: float = 0.0
    queue_seconds: float = 0.0
    cache_hits: int = 0
    cache_misses: int = 0
    asked_tokens: int = 0


class Accounting:
    """Counters. `clock` returns monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        # The last minute's forwards and their sums, in whole nanoseconds: subtracting what was
        # added leaves no rounding error.
        self._recent: deque[tuple[float, int, int]] = deque()  # (when, tokens, nanoseconds)
        self._recent_tokens = 0
        self._recent_nanoseconds = 0
        self.runs: OrderedDict[str, RunAccount] = OrderedDict()
        self.scored_tokens = 0
        self.scored_sequences = 0
        self.forwards = 0
        self.padding_tokens = 0
        self.sent_bytes = 0
        self.compute_seconds = 0.0
        self.refused_requests = 0
        self.failed_requests = 0

    @property
    def uptime_seconds(self) -> float:
        return self._clock() - self._started

    def forward(
        self, num_tokens: int, num_sequences: int, computed_tokens: int, seconds: float
    ) -> None:
        """Counts one forward; `computed_tokens` includes the padding."""
        self.forwards += 1
        self.scored_tokens += num_tokens
        self.scored_sequences += num_sequences
        self.padding_tokens += computed_tokens - num_tokens
        self.compute_seconds += seconds
        nanoseconds = round(1e9 * seconds)
        self._recent.append((self._clock(), num_tokens, nanoseconds))
        self._recent_tokens += num_tokens
        self._recent_nanoseconds += nanoseconds
        self._forget_old()

    def charged(self, run_id: str, tokens: float, seconds: float) -> None:
        """Counts a run's share of a forward."""
        run = self._run(run_id)
        run.tokens += tokens
        run.compute_seconds += seconds

    def derived(self, run_id: str, seconds: float) -> None:
        """Counts the time it took to derive a run's answer from a forward's rows."""
        self.compute_seconds += seconds
        self._run(run_id).compute_seconds += seconds

    def cache_hit(self, run_id: str, num_tokens: int) -> None:
        """Counts a sequence of a run that needed no forward of its own."""
        run = self._run(run_id)
        run.cache_hits += 1
        run.asked_tokens += num_tokens

    def cache_miss(self, run_id: str, num_tokens: int) -> None:
        """Counts a sequence of a run that needed a forward."""
        run = self._run(run_id)
        run.cache_misses += 1
        run.asked_tokens += num_tokens

    def answered(self, run_id: str, sent_bytes: int, queue_seconds: float) -> None:
        """Counts one request that was answered in full."""
        self.sent_bytes += sent_bytes
        run = self._run(run_id)
        run.requests += 1
        run.sent_bytes += sent_bytes
        run.queue_seconds += queue_seconds

    def refused(self) -> None:
        """Counts a call refused before any work: invalid, or the queue was full."""
        self.refused_requests += 1

    def failed(self) -> None:
        """Counts a call that failed after it was accepted."""
        self.failed_requests += 1

    def tokens_per_second(self) -> float:
        """Returns tokens per second of forward time over the last minute; 0 without forwards."""
        self._forget_old()
        if self._recent_nanoseconds <= 0:
            return 0.0
        return self._recent_tokens / (self._recent_nanoseconds / 1e9)

    def _run(self, run_id: str) -> RunAccount:
        run = self.runs.setdefault(run_id, RunAccount())
        self.runs.move_to_end(run_id)
        if len(self.runs) > MAX_RUNS:
            self.runs.popitem(last=False)
        return run

    def _forget_old(self) -> None:
        oldest = self._clock() - _RATE_WINDOW_SECONDS
        while self._recent and self._recent[0][0] < oldest:
            _, num_tokens, nanoseconds = self._recent.popleft()
            self._recent_tokens -= num_tokens
            self._recent_nanoseconds -= nanoseconds
