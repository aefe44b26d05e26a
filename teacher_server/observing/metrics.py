"""A teacher's Prometheus metrics: the fields of GetStats, under the same names.

    lectern_teacher_<field>         of Stats
    lectern_teacher_cache_<field>   of CacheStats
    lectern_teacher_run_<field>     of RunStats, with the label run_id; as many runs as GetStats has
    lectern_teacher_info            what the teacher is, as labels of a constant 1
    lectern_teacher_serving         1 while it takes calls; at 0 it is the only metric

Counters, which only rise while the server lives, end in _total.
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
    "uptime_seconds": (_GAUGE, "Seconds since the model was loaded."),
    "queued_requests": (_GAUGE, "Requests waiting for their first forward."),
    "queued_tokens": (_GAUGE, "Tokens of the sequences not answered yet."),
    "running_requests": (_GAUGE, "Requests being answered."),
    "scored_tokens": (_COUNTER, "Tokens computed by the model, without padding."),
    "scored_sequences": (_COUNTER, "Sequences computed by the model."),
    "sent_bytes": (_COUNTER, "Payload bytes of the answers."),
    "compute_seconds": (_COUNTER, "Seconds of compute time."),
    "tokens_per_second": (_GAUGE, "Tokens per second of compute time, over the last minute."),
    "refused_requests": (_COUNTER, "Requests refused before any work."),
    "failed_requests": (_COUNTER, "Requests that failed after they were accepted."),
    "measured_tokens_per_second": (_GAUGE, "Tokens per second, measured after loading."),
    "forwards": (_COUNTER, "Forwards of the model's body."),
    "padding_tokens": (_COUNTER, "Padding tokens computed by the model."),
}
_CACHE: dict[str, tuple[_Kind, str]] = {
    "hits": (_COUNTER, "Sequences answered without a forward of their own."),
    "misses": (_COUNTER, "Sequences that needed a forward."),
    "evictions": (_COUNTER, "Sequences dropped for newer ones."),
    "used_bytes": (_GAUGE, "Memory used by cached sequences."),
    "capacity_bytes": (_GAUGE, "Memory available to cached sequences; 0 means no cache."),
    "disk_hits": (_COUNTER, "Hits that were read from disk."),
    "disk_used_bytes": (_GAUGE, "Disk space used by cached sequences."),
    "disk_capacity_bytes": (_GAUGE, "Disk space available to cached sequences; 0 means none."),
}
_RUN: dict[str, tuple[_Kind, str]] = {
    "requests": (_COUNTER, "Answered requests of a run."),
    "tokens": (_COUNTER, "Tokens computed for a run, with its share of shared forwards."),
    "sent_bytes": (_COUNTER, "Payload bytes of the answers to a run."),
    "compute_seconds": (_COUNTER, "Seconds of compute time spent on a run."),
    "queue_seconds": (_COUNTER, "Seconds that the requests of a run waited, summed."),
    "cache_hits": (_COUNTER, "Sequences of a run that needed no forward of their own."),
    "cache_misses": (_COUNTER, "Sequences of a run that needed a forward."),
    "asked_tokens": (_COUNTER, "Tokens of all sequences of a run, however they were answered."),
    "weight": (_GAUGE, "A run's share of the teacher, relative to the others'."),
}
_INFO = ("fingerprint", "device", "dtype", "quantization", "mode")


class StatsCollector(Collector):
    """Metrics of what `stats` returns; None means that the teacher takes no calls."""

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
                "Share of the last second in which the device was busy.",
                value=stats.device_utilization,
            )
        for name, (kind, text) in _CACHE.items():
            yield kind(f"{_PREFIX}_cache_{name}", text, value=getattr(stats.cache, name))
        yield from _run_metrics(stats.runs)


def exposition(stats: teacher_pb2.Stats | None) -> bytes:
    """Returns the metrics in Prometheus' text format, of CONTENT_TYPE."""
    return generate_latest(StatsCollector(lambda: stats))


def _run_metrics(runs: Sequence[teacher_pb2.RunStats]) -> Iterator[Metric]:
    for name, (kind, text) in _RUN.items():
        family = kind(f"{_PREFIX}_run_{name}", text, labels=["run_id"])
        for run in runs:
            family.add_metric([run.run_id], getattr(run, name))
        yield family
