"""The sandbox that chat templates run in, with the names that transformers provides.

A template comes with a model and is a Jinja program from a third party. It cannot reach attributes
that lead out of the sandbox, and it cannot read the clock: the date is given to it.
"""

import datetime
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2
    from jinja2.ext import Extension


class Tracker:
    """Records where {% generation %} blocks are in the text, like transformers does."""

    def __init__(self) -> None:
        self.blocks_parsed = 0
        self._blocks: list[str] = []
        self._marked: list[tuple[int, str]] = []

    @contextmanager
    def tracking(self) -> Iterator[tuple[list[str], list[tuple[int, str]]]]:
        self._blocks, self._marked = [], []
        yield self._blocks, self._marked

    def mark(self, part: str) -> None:
        self._marked.append((sum(map(len, self._blocks)), part))


def environment(tracker: Tracker, date: datetime.date | None) -> "jinja2.Environment":
    """Returns the sandbox. Without a date there is no `strftime_now`; with one, it is midnight."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation(tracker), loopcontrols]
    )
    sandbox.filters["tojson"] = _tojson
    for name in ("lipsum", "cycler", "joiner"):
        sandbox.globals.pop(name)
    sandbox.globals["raise_exception"] = _raise_exception
    sandbox.globals["namespace"] = _safe_namespace()
    sandbox.globals["dict"] = _Dict()
    if date is not None:
        midnight = datetime.datetime.combine(date, datetime.time())
        sandbox.globals["strftime_now"] = midnight.strftime
    return sandbox


# Jinja may be missing, so subclasses of its classes are defined only after its import.


def _generation(tracker: Tracker) -> "type[Extension]":
    """Returns the {% generation %} block, which reports to `tracker`."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

        def parse(self, parser: Any) -> nodes.Node:
            tracker.blocks_parsed += 1
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_block"), [], [], body).set_lineno(line)

        def _block(self, caller: Any) -> str:
            part = str(caller())
            tracker.mark(part)
            return part

    return Generation


def _safe_namespace() -> type:
    """Returns Jinja's namespace class, but without names that start with an underscore."""
    import jinja2

    class SafeNamespace(jinja2.utils.Namespace):
        def __init__(*args: Any, **values: Any) -> None:
            own, *rest = args
            named = dict(*rest, **values)
            for name in named:
                _require_plain(name)
            jinja2.utils.Namespace.__init__(own, named)

        def __setitem__(self, name: str, value: Any) -> None:
            _require_plain(name)
            super().__setitem__(name, value)

    def _require_plain(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace has no {name!r}")

    return SafeNamespace


class _Dict:
    """`dict` without the attributes of the class."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _raise_exception(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
