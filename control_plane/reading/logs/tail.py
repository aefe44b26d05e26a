"""The end of a trainer's log, made safe to show: no escapes, long lines or invalid UTF-8."""

import json
import re
from pathlib import Path
from typing import Any

from lectern_common.files import end_of

MAX_TAIL_BYTES = 256 * 1024
MAX_LINE_CHARACTERS = 2000
_ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-Z\\-_])")


def tail(path: Path, lines: int) -> list[str]:
    """Returns the last lines of a log, at most MAX_TAIL_BYTES of it; none if there is no file.

    Of a line that redraws itself (a progress bar), only the last text is kept.
    """
    data, is_cut = end_of(path, MAX_TAIL_BYTES)
    found = data.decode(errors="replace").split("\n")
    if found and not found[-1]:
        found.pop()
    cut_first = is_cut and len(found) <= lines
    shown = [inert_line(line) for line in found[-lines:]] if lines else []
    if cut_first and shown:
        shown[0] = f"[cut] {shown[0]}"
    return shown


def last_line(path: Path) -> str:
    """Returns the last line that is not empty, or an empty string."""
    return next((line.strip() for line in reversed(tail(path, 20)) if line.strip()), "")


def valid_unicode(value: Any) -> Any:
    """Returns a JSON value that can be sent: "?" for lone surrogates, null for NaN and infinity."""
    text = json.dumps(value, ensure_ascii=False).encode(errors="replace").decode()
    return json.loads(text, parse_constant=lambda _: None)


def inert_line(line: str) -> str:
    """Returns a line as a terminal without escapes shows it, cut in the middle if it is long."""
    line = _ESCAPES.sub("", line.rstrip("\r").rpartition("\r")[2])
    if len(line) > MAX_LINE_CHARACTERS:
        # Keep the end too: a traceback ends with the error.
        line = f"{line[: MAX_LINE_CHARACTERS // 2]} [cut] {line[-MAX_LINE_CHARACTERS // 2 :]}"
    if line.isprintable():
        return line
    return "".join(
        character if character.isprintable() or character == "\t" else "\N{REPLACEMENT CHARACTER}"
        for character in line
    )
