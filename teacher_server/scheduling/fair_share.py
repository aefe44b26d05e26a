"""Decides which run is next: runs share the teacher's tokens in proportion to their weights.

Deficit round robin (Shreedhar and Varghese, 1996) in its surplus form: a run is served while it has
credit left; what was computed for it is subtracted afterwards, so its credit may fall below zero. A
round gives the heaviest run a quantum, the others in proportion. So a run that got extra tokens, by
joining another run's batch, waits longer for its next turn; and over any time each run that always
has something waiting gets its share, to within a quantum and a batch.

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
        weights: shell pattern of run ids -> weight > 0; the first match applies, else 1.
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
        """Returns the run to serve; `waiting` holds those that can be served now, at least one."""
        for run_id in waiting:
            self._credit.setdefault(run_id, 0.0)
        while True:
            for run_id, credit in self._credit.items():
                if credit > 0 and run_id in waiting:
                    return run_id
            self._give_rounds(waiting)

    def has_credit(self, run_id: str) -> bool:
        """Returns whether a run may join another run's batch."""
        return self._credit.get(run_id, 0.0) > 0

    def charge(self, run_id: str, tokens: float) -> None:
        """Subtracts computed tokens from a run's credit; a run without credit goes last."""
        credit = self._credit.get(run_id, 0.0) - tokens
        self._credit[run_id] = credit
        if credit <= 0:
            self._credit.move_to_end(run_id)

    def _give_rounds(self, waiting: Collection[str]) -> None:
        """Gives as many rounds as it takes until a waiting run has credit.

        A run with nothing waiting keeps its debt, but loses its credit.
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
