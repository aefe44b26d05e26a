"""Calls that read what a run's trainer has written: metrics, log and samples."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

from lectern.client.problems import unknown_form
from lectern.client.readings import Buckets, MetricsBatch, Sample
from lectern.client.transport import Calls, segment
from lectern.reconnect import OUTAGE_SECONDS, Reconnecting, ServerEvent, followed
from lectern_common.errors import NotFound

MAX_POINTS = 512


class ReadingCalls(Calls):
    """Reads what a run's trainer has written."""

    def metrics(self, run_id: str, after_step: int | None = None) -> list[dict[str, Any]]:
        """Returns the metric records of a run, {"step": 3, "loss/kd": 0.5, ...}, in step order.

        Args:
            run_id: the run's id.
            after_step: returns only later steps; None means all.

        Raises:
            NotFound: there is no such run.
        """
        params: dict[str, str | int] = {} if after_step is None else {"after_step": after_step}
        records: list[dict[str, Any]] = []
        while True:
            batch = self._metrics(run_id, params)
            records = batch.records if batch.rewound else records + batch.records
            if not batch.more:
                return records
            params = {**params, "cursor": batch.cursor}

    def metrics_since(
        self, run_id: str, cursor: str | None, max_points: int = MAX_POINTS
    ) -> MetricsBatch:
        """Returns the metric records since the last batch; for displays that watch a run.

        Args:
            run_id: the run's id.
            cursor: the last batch's cursor; None means all records so far, thinned.
            max_points: about how many records to keep when thinning.

        Raises:
            NotFound: there is no such run.
        """
        if cursor is None:
            return self._metrics(run_id, {"max_points": max_points})
        return self._metrics(run_id, {"cursor": cursor})

    def series(
        self,
        run_id: str,
        keys: Sequence[str] | None = None,
        *,
        max_points: int = MAX_POINTS,
        from_step: int | None = None,
        to_step: int | None = None,
    ) -> dict[str, Buckets]:
        """Returns each metric as at most `max_points` buckets, which lose no low and no high.

        If a metric has no more values than that, each value is a bucket of its own. This reads
        little however long the run is; `metrics` reads all of it.

        Args:
            run_id: the run's id.
            keys: metrics such as "loss/kd"; None means all that the run has logged.
            max_points: buckets of each metric, 16 to 5000.
            from_step: leaves out earlier steps.
            to_step: leaves out later steps.

        Raises:
            NotFound: there is no such run.
        """
        given = {"from_step": from_step, "to_step": to_step}
        params: dict[str, str | int] = {k: v for k, v in given.items() if v is not None}
        params["max_points"] = max_points
        if keys is not None:
            params["keys"] = ",".join(keys)
        answer = self._transport.json("GET", f"/runs/{segment(run_id)}/series", params=params)
        series = _mapping_in(answer, "series")
        return {key: Buckets.of_json(buckets) for key, buckets in series.items()}

    def logs(self, run_id: str, tail: int = 100) -> str:
        """Returns the last `tail` lines of the trainer's log. Raises NotFound."""
        path = f"/runs/{segment(run_id)}/logs"
        return self._transport.ask("GET", path, params={"tail": tail}).text

    def follow_log(
        self,
        run_id: str,
        tail: int = 100,
        *,
        outage_seconds: float = OUTAGE_SECONDS,
        say: Callable[[str], None] = lambda text: None,
    ) -> Iterator[str]:
        """Yields the last lines of the trainer's log, then what is appended, until the run rests.

        Each line comes once, also if the control plane is restarted meanwhile.

        Args:
            run_id: the run's id.
            tail: lines to begin with, at most 5000.
            outage_seconds: how long the control plane may be away in between.
            say: is told when it is away and back, and what of the log is missing.

        Raises:
            NotFound: there is no such run, or it was deleted.
            ControlPlaneUnavailable: it does not answer at first, or is away for longer.
        """
        path = f"/runs/{segment(run_id)}/log/stream"

        def opened(last: str | None) -> Generator[ServerEvent]:
            return self._transport.events(path, {"tail": tail} if last is None else {"after": last})

        with closing(followed(opened, Reconnecting(say, outage_seconds))) as events:
            for event in events:
                if event.kind == "log":
                    yield str(event.data.get("text", ""))
                elif event.kind == "cut":
                    say(f"{event.data.get('bytes')} bytes of the log are no longer there")
                elif event.kind == "rewind":
                    say("the log was replaced; it follows from its start")
                elif event.kind == "rests":
                    return
                elif event.kind == "deleted":
                    raise NotFound(f"run {run_id} was deleted")

    def samples(self, run_id: str, limit: int = 64) -> list[Sample]:
        """Returns the last samples, oldest first. Raises NotFound."""
        answer = self._transport.json(
            "GET", f"/runs/{segment(run_id)}/samples", params={"limit": limit}
        )
        return [Sample.of_json(sample) for sample in answer["samples"]]

    def _metrics(self, run_id: str, params: dict[str, str | int]) -> MetricsBatch:
        answer = self._transport.json("GET", f"/runs/{segment(run_id)}/metrics", params=params)
        return MetricsBatch(
            answer["metrics"], answer["cursor"], rewound=answer["rewound"], more=answer["more"]
        )


def _mapping_in(answer: dict[str, Any], key: str) -> dict[str, Any]:
    found = answer.get(key)
    if not isinstance(found, dict):
        raise unknown_form(key, TypeError(type(found).__name__))
    return found
