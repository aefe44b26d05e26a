"""What Prometheus reads: every field of GetStats, parsed back with Prometheus' own parser."""

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from protos import teacher_pb2 as pb
from teacher_server.observing.metrics import exposition

# Labels of lectern_teacher_info instead.
LABELS = {"fingerprint", "device", "dtype", "quantization", "mode"}


def samples(text: str) -> dict[tuple[str, str | None], float]:
    """Returns {(name, run id or None): value}."""
    return {
        (sample.name, sample.labels.get("run_id")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_info")
    }


def kinds(text: str) -> dict[str, str]:
    return {family.name: family.type for family in text_string_to_metric_families(text)}


def numbered(message, start: int) -> None:
    """Sets every number of a message to a different value."""
    for offset, field in enumerate(message.DESCRIPTOR.fields):
        if field.message_type is None and field.cpp_type != field.CPPTYPE_STRING:
            value = start + offset
            whole = field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64)
            setattr(message, field.name, value if whole else value + 0.5)


def full_stats() -> pb.Stats:
    stats = pb.Stats(
        fingerprint="f" * 64, device='cpu "x"\n', dtype="float32", quantization="none", mode="m"
    )
    numbered(stats, 100)
    numbered(stats.cache, 200)
    for run_id, start in (("first-1", 300), ("second-2", 400)):
        numbered(stats.runs.add(run_id=run_id), start)
    return stats


def expected(stats: pb.Stats) -> dict[tuple[str, str | None], float]:
    """Every number of the message, by the name without _total or _ratio."""
    values: dict[tuple[str, str | None], float] = {("serving", None): 1.0}
    parts: list[tuple[str, str | None, Any]] = [("", None, stats), ("cache_", None, stats.cache)]
    parts += [("run_", run.run_id, run) for run in stats.runs]
    for prefix, run_id, message in parts:
        for field, value in message.ListFields():
            if field.message_type is None and field.name not in {*LABELS, "run_id"}:
                values[prefix + field.name, run_id] = value
    return values


def test_every_field_of_the_statistics_is_a_metric_with_its_value() -> None:
    stats = full_stats()
    found = {
        (
            name.removeprefix("lectern_teacher_").removesuffix("_total").removesuffix("_ratio"),
            run,
        ): v
        for (name, run), v in samples(exposition(stats).decode()).items()
    }
    assert found == expected(stats)
    assert len(found) == 1 + 15 + 8 + 2 * 9


def test_only_what_never_falls_is_a_counter_ending_in_total() -> None:
    text = exposition(full_stats()).decode()
    counters = {name for name, kind in kinds(text).items() if kind == "counter"}
    totals = {name.removesuffix("_total") for name, _ in samples(text) if name.endswith("_total")}
    assert counters == totals
    gauges = kinds(text).keys() - counters
    assert {name.removeprefix("lectern_teacher_") for name in gauges} == {
        "info",
        "serving",
        "uptime_seconds",
        "queued_requests",
        "queued_tokens",
        "running_requests",
        "tokens_per_second",
        "measured_tokens_per_second",
        "device_utilization_ratio",
        "cache_used_bytes",
        "cache_capacity_bytes",
        "cache_disk_used_bytes",
        "cache_disk_capacity_bytes",
        "run_weight",
    }


def test_the_info_labels_hold_any_characters() -> None:
    text = exposition(full_stats()).decode()
    [info] = [
        sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "lectern_teacher_info"
    ]
    assert info.labels == {
        "fingerprint": "f" * 64,
        "device": 'cpu "x"\n',
        "dtype": "float32",
        "quantization": "none",
        "mode": "m",
    }


def test_a_device_without_utilization_has_no_utilization_metric() -> None:
    stats = full_stats()
    stats.ClearField("device_utilization")
    assert not [name for name, _ in samples(exposition(stats).decode()) if "utilization" in name]


def test_a_teacher_that_takes_no_calls_reports_only_that() -> None:
    assert samples(exposition(None).decode()) == {("lectern_teacher_serving", None): 0.0}
