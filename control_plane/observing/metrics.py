"""The control plane's Prometheus metrics; docs/observing.md says what each is for.

Counters end in _total and rise while this process lives; a restart begins them at 0, which
Prometheus' rate() and increase() know. Nothing here reads a run by itself: one query counts them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from control_plane.runs.healing import HEALED
from control_plane.runs.queries import StateCount
from lectern_common.run.status import RunState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_REASONS = 50  # as label values; a trainer may write any word as its reason

_PREFIX = "lectern_control_plane"


@dataclass(frozen=True)
class Figures:
    """What the metrics show. Times are Unix seconds."""

    now: float
    started_at: float
    info: Mapping[str, str]
    runs: Mapping[str, StateCount]
    queue_limit: int
    look_age_seconds: float
    streams: int
    streams_limit: int
    disk: tuple[int, int] | None  # total and free bytes; None if the disk cannot be asked
    teachers: Mapping[str, bool]  # reachable, by address
    restarts: Mapping[str, int]  # by reason
    alerts_undelivered: int


class _Figures(Collector):
    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        found = self._figures
        yield InfoMetricFamily(_PREFIX, "What this control plane is.", value=dict(found.info))
        yield from _of_runs(found)
        for name, text, value in (
            ("start_time_seconds", "When this process started, in Unix seconds.", found.started_at),
            (
                "last_look_age_seconds",
                "Seconds since the loop last looked at all runs with success.",
                found.look_age_seconds,
            ),
            ("streams_open", "Event streams that are open.", found.streams),
            ("streams_limit", "Event streams that may be open.", found.streams_limit),
            (
                "alerts_undelivered",
                "Alerts that the webhook's receiver has not taken yet.",
                found.alerts_undelivered,
            ),
        ):
            yield GaugeMetricFamily(f"{_PREFIX}_{name}", text, value=float(value))
        if found.disk is not None:
            for name, text, size in zip(
                ("total", "free"),
                ("Size of the disk of the run folders.", "Free bytes on that disk."),
                found.disk,
                strict=True,
            ):
                yield GaugeMetricFamily(f"{_PREFIX}_disk_{name}_bytes", text, value=float(size))
        reachable = GaugeMetricFamily(
            f"{_PREFIX}_teacher_reachable",
            "1 if a teacher named by --teacher answers.",
            labels=["address"],
        )
        for address, answers in found.teachers.items():
            reachable.add_metric([address], float(answers))
        yield reachable


def exposition(figures: Figures) -> bytes:
    """Returns the metrics in Prometheus' text format, of CONTENT_TYPE."""
    return generate_latest(_Figures(figures))


def _of_runs(found: Figures) -> Iterator[Metric]:
    none = StateCount(0, 0, found.now)
    runs = GaugeMetricFamily(f"{_PREFIX}_runs", "Runs in each state.", labels=["state"])
    for state in RunState:
        runs.add_metric([state], float(found.runs.get(state, none).runs))
    yield runs
    stalled = sum(count.stalled for count in found.runs.values())
    yield GaugeMetricFamily(
        f"{_PREFIX}_runs_stalled", "Active runs that make no progress.", value=float(stalled)
    )
    queued = found.runs.get(RunState.QUEUED, none)
    for name, text, value in (
        ("length", "Runs in the queue.", queued.runs),
        ("limit", "Runs that may be in the queue.", found.queue_limit),
        (
            "oldest_wait_seconds",
            "How long the longest-waiting run has been in the queue; 0 if none is.",
            max(0.0, found.now - queued.since),
        ),
    ):
        yield GaugeMetricFamily(f"{_PREFIX}_queue_{name}", text, value=float(value))
    restarts = CounterMetricFamily(
        f"{_PREFIX}_run_restarts",
        "Runs queued again by themselves after their trainer was lost, by the reason of its end.",
        labels=["reason"],
    )
    heals = CounterMetricFamily(
        f"{_PREFIX}_run_heals",
        "Runs queued again by themselves because what had ended them was over, by that reason.",
        labels=["reason"],
    )
    for reason, count in _bounded(found.restarts).items():
        (heals if reason in HEALED else restarts).add_metric([reason], float(count))
    yield restarts
    yield heals


def _bounded(counts: Mapping[str, int]) -> dict[str, int]:
    """Returns the counts of the first MAX_REASONS reasons, and of all others as one."""
    kept = dict(list(counts.items())[:MAX_REASONS])
    others = sum(counts.values()) - sum(kept.values())
    return {**kept, "other": kept.get("other", 0) + others} if others else kept
