"""What a teacher does now, for a terminal: speed, queue, cache, and what each run has had of it."""

from collections.abc import Iterator, Mapping
from typing import Any

from lectern_cli import console

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_UNKNOWN = "-"


def print_status(figures: Mapping[str, Any]) -> None:
    """Prints what `teacher_figures` returned, with the teacher's `address`."""
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
            _size(account["sent_bytes"]),
            _percent(account["hit_share"]),
            _UNKNOWN if wait is None else f"{wait:.3g} s",
            _UNKNOWN if weight is None else f"{weight:g}",
        )
    console.out().print(table)
    left_out = figures["num_accounts"] - len(figures["accounts"])
    if left_out > 0:
        print(f"and {left_out} runs that had less")


def _lines(figures: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    in_use = figures["device_utilization"]
    yield "device", figures["device"] + ("" if in_use is None else f", {_percent(in_use)} in use")
    quantization = figures["quantization"]
    yield "dtype", figures["dtype"] + (f", {quantization}" if quantization != "none" else "")
    yield "mode", figures["mode"] or _UNKNOWN
    measured = figures["measured_tokens_per_second"]
    yield (
        "speed",
        f"{figures['tokens_per_second']:,.0f} tokens/s in the last minute"
        + ("" if measured is None else f"; {measured:,.0f} measured at its start"),
    )
    yield (
        "queue",
        f"{figures['queued_requests']} waiting with {figures['queued_tokens']:,} tokens, "
        f"{figures['running_requests']} being answered, at most {figures['max_queued_requests']}",
    )
    forwards = figures["forwards"]
    yield (
        "scored",
        f"{figures['scored_tokens']:,} tokens of {figures['scored_sequences']:,} sequences"
        + ("" if forwards is None else f" in {forwards:,} forwards")
        + f", {_percent(figures['padding_share'])} padding",
    )
    yield "cache", _cache(figures["cache"])
    yield (
        "answers",
        f"{_size(figures['sent_bytes'])} sent; {figures['refused_requests']:,} requests turned "
        f"away, {figures['failed_requests']:,} failed",
    )
    yield "up for", _duration(figures["uptime_seconds"])


def _cache(cache: Mapping[str, Any] | None) -> str:
    if cache is None:
        return "none"
    text = (
        f"{_percent(cache['hit_share'])} of {cache['hits'] + cache['misses']:,} sequences; "
        f"{_size(cache['used_bytes'])} of {_size(cache['capacity_bytes'])}"
    )
    if not cache["disk_capacity_bytes"]:
        return text
    disk = f"{_size(cache['disk_used_bytes'])} of {_size(cache['disk_capacity_bytes'])}"
    return f"{text}, on disk {disk}"


def _percent(share: float | None) -> str:
    return _UNKNOWN if share is None else f"{100 * share:.3g} %"


def _size(num_bytes: float) -> str:
    power = 0
    while num_bytes >= 999.5 and power < len(_UNITS) - 1:
        num_bytes, power = num_bytes / 1000, power + 1
    return f"{num_bytes:.3g} {_UNITS[power]}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
