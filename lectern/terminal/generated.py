"""What `lectern data generate` says at its end: how many answers, and why not more."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lectern_common.words import counted, duration, inert_name

if TYPE_CHECKING:
    from lectern_data.asking.generate import Generated

_REASONS_SHOWN = 5


def generated_lines(generated: "Generated") -> Iterator[str]:
    """Yields the report, line by line."""
    written = generated.written
    tokens = f" of {counted(written.tokens, 'token')}" if written.tokens else ""
    yield (
        f"{inert_name(written.path)}: {counted(written.answers, 'answer')}{tokens} to "
        f"{counted(generated.prompts, 'prompt')}"
    )
    if generated.duplicates:
        yield f"{counted(generated.duplicates, 'row')} ask what another row asks; asked once"
    if written.equal:
        yield f"{counted(written.equal, 'answer')} left out: equal to another to the same prompt"
    if written.cut:
        yield f"{counted(written.cut, 'answer')} cut at the most tokens; see --max-tokens and --cut"
    yield from _reasons("refused or empty", written.refused.most_common())
    yield from _reasons("failed", list(generated.failed.items()))
    rate = generated.tokens_per_second
    pace = "" if rate is None else f", {rate:,.0f} tokens/s"
    again = f", {generated.retries:,} made again" if generated.retries else ""
    took = duration(generated.seconds / 3600)
    yield f"{counted(generated.asked, 'request')} answered in {took}{pace}{again}"


def _reasons(what: str, reasons: list[tuple[str, int]]) -> Iterator[str]:
    if not reasons:
        return
    total = sum(count for _, count in reasons)
    yield f"{counted(total, 'request')} {what}"
    for why, count in reasons[:_REASONS_SHOWN]:
        yield f"  {count:,}: {why}"
    if len(reasons) > _REASONS_SHOWN:
        yield f"  and {counted(len(reasons) - _REASONS_SHOWN, 'other reason')}"
