"""A teacher's model and statistics as plain values for people and programs.

The control plane's page and `lectern teacher status` show them. A figure that the teacher does not
report, for example because its version is older, is None or 0.
"""

import math
from typing import Any

from google.protobuf.message import Message

from lectern_common.teacher.identity import ranks_of
from lectern_common.wire.formats import NAMES
from protos import teacher_pb2

# Runs to list, those with the most compute first; a server may know a thousand.
MAX_ACCOUNTS = 100


def teacher_figures(model: teacher_pb2.Model, stats: teacher_pb2.Stats) -> dict[str, Any]:
    """Returns JSON values by name; shares are 0 .. 1, counts run from the teacher's start.

    Clears floats in the messages that are not finite: JSON has none.
    """
    for message in (model, stats, *stats.runs):
        _clear_non_finite(message)
    return {
        "model": model.model_id,
        "revision": model.revision or None,
        "engine": model.engine,
        "num_parameters": model.num_parameters,
        "fingerprint": model.fingerprint,
        "weights_sha256": model.weights_sha256,
        "device": model.device,
        "tensor_parallel": ranks_of(model),
        "device_utilization": (
            stats.device_utilization if stats.HasField("device_utilization") else None
        ),
        "dtype": model.dtype,
        "quantization": model.quantization or None,
        "mode": model.mode or None,
        "representations": [
            {
                "name": NAMES.get(offer.kind, str(offer.kind)),
                "offered": offer.offered,
                "reason": offer.reason,
            }
            for offer in model.representations
        ],
        "uptime_seconds": stats.uptime_seconds,
        "measured_tokens_per_second": model.measured_tokens_per_second or None,
        "tokens_per_second": stats.tokens_per_second,
        "scored_tokens": stats.scored_tokens,
        "scored_sequences": stats.scored_sequences,
        "sent_bytes": stats.sent_bytes,
        "compute_seconds": stats.compute_seconds,
        "forwards": stats.forwards if _counts_forwards(stats) else None,
        "padding_share": (
            _share(stats.padding_tokens, stats.padding_tokens + stats.scored_tokens)
            if _counts_forwards(stats)
            else None
        ),
        "queued_requests": stats.queued_requests,
        "queued_tokens": stats.queued_tokens,
        "running_requests": stats.running_requests,
        "max_queued_requests": model.limits.max_queued_requests,
        "refused_requests": stats.refused_requests,
        "failed_requests": stats.failed_requests,
        "cache": _cache(stats.cache),
        "accounts": _accounts(stats),
        "num_accounts": len(stats.runs),
    }


def _clear_non_finite(message: Message) -> None:
    for field, value in message.ListFields():
        if isinstance(value, float) and not math.isfinite(value):
            message.ClearField(field.name)


def _counts_forwards(stats: teacher_pb2.Stats) -> bool:
    return stats.forwards > 0 or stats.scored_tokens == 0


def _cache(cache: teacher_pb2.CacheStats) -> dict[str, Any] | None:
    if not (cache.capacity_bytes or cache.hits or cache.misses):
        return None
    return {
        "hits": cache.hits,
        "misses": cache.misses,
        "hit_share": _share(cache.hits, cache.hits + cache.misses),
        "evictions": cache.evictions,
        "used_bytes": cache.used_bytes,
        "capacity_bytes": cache.capacity_bytes,
        "disk_hits": cache.disk_hits,
        "disk_used_bytes": cache.disk_used_bytes,
        "disk_capacity_bytes": cache.disk_capacity_bytes,
    }


def _accounts(stats: teacher_pb2.Stats) -> list[dict[str, Any]]:
    by_compute = sorted(stats.runs, key=lambda run: (-run.compute_seconds, run.run_id))
    return [
        {
            "run_id": run.run_id,
            "requests": run.requests,
            "tokens": run.tokens,
            "sent_bytes": run.sent_bytes,
            "compute_seconds": run.compute_seconds,
            # Of all compute, including that of runs that the server has forgotten.
            "compute_share": _share(run.compute_seconds, stats.compute_seconds),
            "mean_queue_seconds": run.queue_seconds / run.requests if run.requests else None,
            "cache_hits": run.cache_hits,
            "hit_share": _share(run.cache_hits, run.cache_hits + run.cache_misses),
            "weight": run.weight or None,
        }
        for run in by_compute[:MAX_ACCOUNTS]
    ]


def _share(part: float, whole: float) -> float | None:
    return min(1.0, part / whole) if whole > 0 else None
