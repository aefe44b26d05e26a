"""What Prometheus reads of a teacher: the fields of GetStats, under the same names.

    lectern_teacher_<field>         of Stats
    lectern_teacher_cache_<field>   of CacheStats
    lectern_teacher_run_<field>     of RunStats, with the label run_id; as many runs as GetStats has
    lectern_teacher_info            what the teacher is, as labels of a 1
    lectern_teacher_serving         1 while it takes calls; without it there is nothing else

A counter, which only rises while the server lives, ends in _total.
"""

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from protos import teacher_pb2

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PREFIX = "lectern_teacher"
_COUNTER, _GAUGE = CounterMetricFamily, GaugeMetricFamily
_Kind = type[CounterMetricFamily] | type[GaugeMetricFamily]

_STATS: dict[str, tuple[_Kind, str]] = {
    "uptime_seconds": (_GAUGE, "Since the model was loaded."),
    "queued_requests": (_GAUGE, "Requests that wait for a forward."),
    "queued_tokens": (_GAUGE, "Tokens of the requests that wait."),
    "running_requests": (_GAUGE, "Requests that are being answered."),
    "scored_tokens": (_COUNTER, "Tokens that went through the model, without padding."),
    "scored_sequences": (_COUNTER, "Sequences that went through the model."),
    "sent_bytes": (_COUNTER, "Payload of the answers."),
    "compute_seconds": (_COUNTER, "Time that the model took."),
    "tokens_per_second": (_GAUGE, "Of compute time, over the last minute."),
    "refused_requests": (_COUNTER, "Requests turned away before any work."),
    "failed_requests": (_COUNTER, "Requests that broke after they were accepted."),
    "measured_tokens_per_second": (_GAUGE, "As measured when the model was loaded."),
    "forwards": (_COUNTER, "Forwards of the model's body."),
    "padding_tokens": (_COUNTER, "Padding that went through the model."),
}
_CACHE: dict[str, tuple[_Kind, str]] = {
    "hits": (_COUNTER, "Sequences answered without a forward of their own."),
    "misses": (_COUNTER, "Sequences that needed a forward."),
    "evictions": (_COUNTER, "Sequences dropped for newer ones."),
    "used_bytes": (_GAUGE, "Memory that cached sequences take."),
    "capacity_bytes": (_GAUGE, "Memory that they may take; 0: no cache."),
    "disk_hits": (_COUNTER, "Those of the hits that were read from disk."),
    "disk_used_bytes": (_GAUGE, "Disk that cached sequences take."),
    "disk_capacity_bytes": (_GAUGE, "Disk that they may take; 0: none."),
}
_RUN: dict[str, tuple[_Kind, str]] = {
    "requests": (_COUNTER, "Requests of a run that were answered."),
    "tokens": (_COUNTER, "Tokens computed for a run, its part of those that several wanted."),
    "sent_bytes": (_COUNTER, "Payload of the answers to a run."),
    "compute_seconds": (_COUNTER, "Time that the model took for a run."),
    "queue_seconds": (_COUNTER, "Time that the requests of a run waited, added up."),
    "cache_hits": (_COUNTER, "Sequences of a run that needed no forward of their own."),
    "cache_misses": (_COUNTER, "Sequences of a run that needed a forward."),
    "weight": (_GAUGE, "A run's share of the teacher, relative to the others'."),
}
_INFO = ("fingerprint", "device", "dtype", "quantization", "mode")


class StatsCollector(Collector):
    """Metrics of what `stats` returns at that moment; None: the teacher takes no calls."""

    def __init__(self, stats: Callable[[], teacher_pb2.Stats | None]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        yield GaugeMetricFamily(
            f"{_PREFIX}_serving", "1 while the teacher takes calls.", value=float(stats is not None)
        )
        if stats is None:
            return
        labels = {name: getattr(stats, name) for name in _INFO}
        yield InfoMetricFamily(_PREFIX, "What the teacher is.", value=labels)
        for name, (kind, text) in _STATS.items():
            yield kind(f"{_PREFIX}_{name}", text, value=getattr(stats, name))
        if stats.HasField("device_utilization"):
            yield GaugeMetricFamily(
                f"{_PREFIX}_device_utilization_ratio",
                "Share of the last second that the device was at work.",
                value=stats.device_utilization,
            )
        for name, (kind, text) in _CACHE.items():
            yield kind(f"{_PREFIX}_cache_{name}", text, value=getattr(stats.cache, name))
        yield from _of_runs(stats.runs)


def exposition(stats: teacher_pb2.Stats | None) -> bytes:
    """Returns the metrics in Prometheus' text format, of CONTENT_TYPE."""
    return generate_latest(StatsCollector(lambda: stats))


def _of_runs(runs: Sequence[teacher_pb2.RunStats]) -> Iterator[Metric]:
    for name, (kind, text) in _RUN.items():
        family = kind(f"{_PREFIX}_run_{name}", text, labels=["run_id"])
        for run in runs:
            family.add_metric([run.run_id], getattr(run, name))
        yield family
