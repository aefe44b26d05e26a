"""A teacher's status as text: speed, queue, cache, and each run's use of it."""

from collections.abc import Iterator, Mapping
from typing import Any

from lectern import console
from lectern_common.words import counted, layout, size

_UNKNOWN = "-"


def print_status(figures: Mapping[str, Any]) -> None:
    """Prints the figures that `teacher_figures` returns, plus the teacher's `address`."""
    from rich.table import Table
    from rich.text import Text

    print(console.inert(f"{figures['model']} at {figures['address']}"))
    for name, text in _lines(figures):
        print(console.inert(f"  {name:<10} {text}"))
    if not figures["accounts"]:
        return
    table = Table("run", "share", "tokens", "sent", "cached", "waits", "weight")
    for column in table.columns[1:]:
        column.justify = "right"
    for account in figures["accounts"]:
        wait, weight = account["mean_queue_seconds"], account["weight"]
        table.add_row(
            Text(console.inert(account["run_id"]), overflow="fold"),
            _percent(account["compute_share"]),
            f"{account['tokens']:,}",
            size(account["sent_bytes"]),
            _percent(account["hit_share"]),
            _UNKNOWN if wait is None else f"{wait:.3g} s",
            _UNKNOWN if weight is None else f"{weight:g}",
        )
    console.out().print(table)
    left_out = figures["num_accounts"] - len(figures["accounts"])
    if left_out > 0:
        print(f"and {counted(left_out, 'run')} with a smaller share")


def _lines(figures: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    in_use = figures["device_utilization"]
    device = figures["device"] + layout(figures["tensor_parallel"])
    yield "device", device + ("" if in_use is None else f", {_percent(in_use)} in use")
    quantization = figures["quantization"]
    yield "dtype", figures["dtype"] + (f", {quantization}" if quantization != "none" else "")
    yield "mode", figures["mode"] or _UNKNOWN
    measured = figures["measured_tokens_per_second"]
    speed = figures["tokens_per_second"]
    yield (
        "speed",
        (f"{speed:,.0f} tokens/s" if speed else "idle")
        + " in the last minute"
        + ("" if measured is None else f"; {measured:,.0f} measured at startup"),
    )
    yield (
        "requests",
        f"{figures['queued_requests']:,} of at most {figures['max_queued_requests']:,} queued, "
        f"with {counted(figures['queued_tokens'], 'token')}; "
        f"{figures['running_requests']:,} in progress",
    )
    yield "scored", _scored(figures)
    yield "cache", _cache(figures["cache"])
    yield (
        "answers",
        f"{size(figures['sent_bytes'])} sent; "
        f"{counted(figures['refused_requests'], 'request')} refused, "
        f"{figures['failed_requests']:,} failed",
    )
    yield "up for", _duration(figures["uptime_seconds"])


def _scored(figures: Mapping[str, Any]) -> str:
    tokens, forwards = figures["scored_tokens"], figures["forwards"]
    padding = figures["padding_share"]
    if not tokens:
        return "nothing yet"
    return (
        f"{counted(tokens, 'token')} of {counted(figures['scored_sequences'], 'sequence')}"
        + ("" if forwards is None else f" in {counted(forwards, 'forward')}")
        + ("" if padding is None else f", {_percent(padding)} padding")
    )


def _cache(cache: Mapping[str, Any] | None) -> str:
    if cache is None:
        return "none"
    looked_up = cache["hits"] + cache["misses"]
    text = (
        f"{_percent(cache['hit_share'])} hits of {counted(looked_up, 'sequence')}"
        if looked_up
        else "not used yet"
    )
    text += f"; {size(cache['used_bytes'])} of {size(cache['capacity_bytes'])} used"
    if not cache["disk_capacity_bytes"]:
        return text
    disk = f"{size(cache['disk_used_bytes'])} of {size(cache['disk_capacity_bytes'])}"
    return f"{text}, on disk {disk}"


def _percent(share: float | None) -> str:
    return _UNKNOWN if share is None else f"{100 * share:.3g} %"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
