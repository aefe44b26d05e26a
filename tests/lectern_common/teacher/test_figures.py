"""A teacher's figures: shares and means, even if it reports little or nonsense."""

import json
import math

import pytest

from lectern_common.teacher.figures import MAX_ACCOUNTS, teacher_figures
from protos import teacher_pb2 as pb


def test_shares_and_means_are_those_of_the_counters() -> None:
    stats = pb.Stats(
        scored_tokens=970,
        padding_tokens=30,
        forwards=7,
        compute_seconds=8.0,
        device_utilization=0.0,
        cache=pb.CacheStats(hits=3, misses=9, capacity_bytes=100, used_bytes=40, disk_hits=1),
        runs=[
            pb.RunStats(run_id="small", compute_seconds=2.0, requests=4, queue_seconds=6.0),
            pb.RunStats(
                run_id="large", compute_seconds=5.0, cache_hits=1, cache_misses=3, weight=2.0
            ),
        ],
    )
    model = pb.Model(measured_tokens_per_second=1234.5, mode="throughput", quantization="int8")
    figures = teacher_figures(model, stats)
    assert (figures["forwards"], figures["padding_share"]) == (7, 0.03)
    assert (figures["mode"], figures["quantization"]) == ("throughput", "int8")
    assert figures["measured_tokens_per_second"] == 1234.5
    assert figures["device_utilization"] == 0.0
    cache = figures["cache"]
    assert (cache["hit_share"], cache["used_bytes"], cache["disk_hits"]) == (0.25, 40, 1)
    large, small = figures["accounts"]
    assert (large["run_id"], large["compute_share"], large["hit_share"]) == ("large", 0.625, 0.25)
    assert (large["weight"], large["mean_queue_seconds"]) == (2.0, None)
    assert (small["compute_share"], small["mean_queue_seconds"]) == (0.25, 1.5)
    assert (small["weight"], small["hit_share"]) == (None, None)


def test_a_teacher_that_has_done_nothing_yet_has_counts_of_0_and_no_shares() -> None:
    figures = teacher_figures(pb.Model(), pb.Stats(cache=pb.CacheStats(capacity_bytes=9)))
    assert (figures["forwards"], figures["padding_share"]) == (0, None)
    assert figures["cache"]["hit_share"] is None
    assert figures["device_utilization"] is None
    assert (figures["accounts"], figures["num_accounts"]) == ([], 0)


def test_figures_that_an_older_server_does_not_report_are_none() -> None:
    runs = [pb.RunStats(run_id="run-1", requests=2, tokens=50, compute_seconds=1.0)]
    stats = pb.Stats(scored_tokens=50, compute_seconds=1.0, cache=pb.CacheStats(), runs=runs)
    figures = teacher_figures(pb.Model(mode="independent"), stats)
    for name in ("forwards", "padding_share", "cache", "measured_tokens_per_second", "revision"):
        assert figures[name] is None, name
    [account] = figures["accounts"]
    assert (account["weight"], account["hit_share"], account["compute_share"]) == (None, None, 1.0)


def test_a_server_without_a_cache_still_has_shared_sequences() -> None:
    stats = pb.Stats(cache=pb.CacheStats(hits=1, misses=3))
    cache = teacher_figures(pb.Model(), stats)["cache"]
    assert (cache["capacity_bytes"], cache["hit_share"]) == (0, 0.25)


def test_the_runs_with_the_most_compute_are_listed_and_all_are_counted() -> None:
    runs = [pb.RunStats(run_id=f"run-{n:03}", compute_seconds=n % 500) for n in range(700)]
    figures = teacher_figures(pb.Model(), pb.Stats(runs=runs, compute_seconds=100_000))
    assert figures["num_accounts"] == 700
    assert len(figures["accounts"]) == MAX_ACCOUNTS
    seconds = [account["compute_seconds"] for account in figures["accounts"]]
    assert seconds == sorted(seconds, reverse=True)
    assert figures["accounts"][0]["run_id"] == "run-499"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_count_as_missing(value: float) -> None:
    model = pb.Model(measured_tokens_per_second=value)
    stats = pb.Stats(tokens_per_second=value, compute_seconds=value, device_utilization=value)
    stats.runs.add(run_id="run-1", compute_seconds=value, queue_seconds=value, requests=1)
    figures = teacher_figures(model, stats)
    json.dumps(figures, allow_nan=False)
    assert figures["device_utilization"] is None
    assert figures["tokens_per_second"] == 0


def test_shares_never_exceed_the_whole() -> None:
    stats = pb.Stats(compute_seconds=1.0, runs=[pb.RunStats(run_id="r", compute_seconds=1.5)])
    assert teacher_figures(pb.Model(), stats)["accounts"][0]["compute_share"] == 1.0
