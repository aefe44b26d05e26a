"""How many tokens a run may ask for in a minute: a bucket for each run that has a quota.

A request is admitted while its run's bucket is not in debt, and may take it there, so that one
that is larger than a minute's quota still gets through, once in as many minutes.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from lectern_common.errors import Overloaded
from teacher_server.fair_share import first_match

# Run ids come from clients: the longest idle buckets are forgotten beyond this many.
_MAX_RUNS = 1000
_MAX_PUSHBACK_SECONDS = 60.0


class Quotas:
    """Token buckets.

    Args:
        tokens_per_minute: shell pattern of run ids -> quota; the first that matches holds. Runs
            that match none have no quota.
        clock: seconds, rising.
    """

    def __init__(
        self,
        tokens_per_minute: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tokens_per_minute = dict(tokens_per_minute or {})
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (tokens, when)

    def take(self, run_id: str, tokens: int) -> None:
        """Counts a request against its run's quota.

        Raises:
            Overloaded: the quota is used up; says when there is room again. Nothing was counted.
        """
        quota = first_match(self._tokens_per_minute, run_id, math.inf)
        if quota == math.inf:
            return
        now = self._clock()
        left, when = self._buckets.get(run_id, (quota, now))
        left = min(quota, left + (now - when) * quota / 60)
        if left <= 0:
            raise Overloaded(
                f"run {run_id} has used its quota of {quota:g} tokens a minute",
                # Nobody should sleep through a change of quotas.
                retry_after_seconds=min(max(0.1, -left * 60 / quota), _MAX_PUSHBACK_SECONDS),
            )
        self._buckets[run_id] = (left - tokens, now)
        self._buckets.move_to_end(run_id)
        if len(self._buckets) > _MAX_RUNS:
            self._buckets.popitem(last=False)
