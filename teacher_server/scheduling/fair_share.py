"""Whose turn it is: runs share the teacher by tokens, each in proportion to its weight.

Deficit round robin (Shreedhar and Varghese, 1996) in its surplus form: a run is served while it has
credit left, what was computed for it is taken off afterwards, and its credit may fall below zero. A
round gives the heaviest run a quantum, the others in proportion. So a run that got more than its
turn, as company in another one's batch, waits the longer for the next; and over any time each run
that always has something waiting gets its share, to within a quantum and a batch.

Pure and single-threaded: no clock, no asyncio.
"""

import fnmatch
import math
from collections import OrderedDict
from collections.abc import Collection, Mapping

QUANTUM_TOKENS = 4096


class FairShare:
    """Credits of runs.

    Args:
        weights: shell pattern of run ids -> weight > 0; the first that matches holds, else 1.
        quantum_tokens: credit that a round gives the heaviest run.
    """

    def __init__(
        self, weights: Mapping[str, float] | None = None, quantum_tokens: int = QUANTUM_TOKENS
    ) -> None:
        self._weights = dict(weights or {})
        self._quantum_tokens = quantum_tokens
        self._credit: OrderedDict[str, float] = OrderedDict()  # in the order of service

    def weight(self, run_id: str) -> float:
        """Returns the run's share, relative to the others'."""
        return first_match(self._weights, run_id, 1.0)

    def next(self, waiting: Collection[str]) -> str:
        """Returns the run to serve; `waiting` are those that could be served now, at least one."""
        for run_id in waiting:
            self._credit.setdefault(run_id, 0.0)
        while True:
            for run_id, credit in self._credit.items():
                if credit > 0 and run_id in waiting:
                    return run_id
            self._give_rounds(waiting)

    def has_credit(self, run_id: str) -> bool:
        """Returns whether a run may be served in another one's turn."""
        return self._credit.get(run_id, 0.0) > 0

    def charge(self, run_id: str, tokens: float) -> None:
        """Takes what was computed for a run off its credit; once it has none it goes last."""
        credit = self._credit.get(run_id, 0.0) - tokens
        self._credit[run_id] = credit
        if credit <= 0:
            self._credit.move_to_end(run_id)

    def _give_rounds(self, waiting: Collection[str]) -> None:
        """Gives as many rounds as it takes until a waiting run has credit.

        A run with nothing waiting keeps its debt, and loses what it had left.
        """
        heaviest = max(self.weight(run_id) for run_id in self._credit)
        quanta = {
            run_id: self._quantum_tokens * self.weight(run_id) / heaviest for run_id in self._credit
        }
        rounds = min(math.floor(-self._credit[run_id] / quanta[run_id]) + 1 for run_id in waiting)
        for run_id, quantum in quanta.items():
            credit = self._credit[run_id] + rounds * quantum
            if run_id in waiting or credit < 0:
                self._credit[run_id] = credit
            else:
                del self._credit[run_id]


def first_match(patterns: Mapping[str, float], run_id: str, default: float) -> float:
    """Returns the value of the first shell pattern that the run id matches."""
    return next(
        (value for pattern, value in patterns.items() if fnmatch.fnmatchcase(run_id, pattern)),
        default,
    )
