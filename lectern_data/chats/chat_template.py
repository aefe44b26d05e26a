"""Renders a tokenizer's chat template like transformers does, without torch or transformers.

A template comes with a model and is a Jinja program from a third party. It runs in Jinja's sandbox,
where it cannot reach attributes that lead out of it, and sees only the messages and the special
tokens. It cannot read the time, so equal chats give equal texts.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lectern_common.errors import CorruptData, Misconfigured
from lectern_data.read.rows import UnusableError

if TYPE_CHECKING:
    import jinja2
    from jinja2.ext import Extension

_MAX_TEMPLATE_BYTES = 1 << 20

Span = tuple[int, int]
Messages = list[dict[str, Any]]


class ChatTemplate:
    """A compiled template.

    Attributes:
        source: the template.
        special_tokens: the names that it may use: bos_token, eos_token, ...
        marks_turns: it marks itself what the assistant wrote ({% generation %}).
    """

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        """Raises CorruptData if it is not a template, Misconfigured if Jinja is missing."""
        if len(source.encode(errors="replace")) > _MAX_TEMPLATE_BYTES:
            raise CorruptData(f"the chat template is larger than {_MAX_TEMPLATE_BYTES:,} bytes")
        try:
            import jinja2
        except ModuleNotFoundError:
            raise Misconfigured(
                "chat templates need Jinja, which is not installed: pip install 'lectern[data]'"
            ) from None
        self.source = source
        self.special_tokens = special_tokens
        self._tracker = _Tracker()
        try:
            self._template = _environment(self._tracker).from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise CorruptData(f"the chat template is not a Jinja template: {error}") from None
        self.marks_turns = self._tracker.blocks_parsed > 0

    def render(self, messages: Messages, *, prompt: bool = False) -> str:
        """Returns the chat as text; with `prompt`, also the start of the assistant's next turn.

        Raises:
            UnusableError: the template fails on the chat.
        """
        return self.render_marked(messages, prompt=prompt)[0]

    def render_marked(self, messages: Messages, *, prompt: bool = False) -> tuple[str, list[Span]]:
        """Returns the text, and the (start, end) of the spans marked as the assistant's.

        Raises:
            UnusableError: the template fails on the chat, or marks text that is not in its output.
        """
        with self._tracker.tracking() as (blocks, marked):
            try:
                for block in self._template.generate(
                    messages=messages,
                    tools=None,
                    documents=None,
                    add_generation_prompt=prompt,
                    **self.special_tokens,
                ):
                    blocks.append(block)
            except Exception as error:  # the template is a program of its own, and may do anything
                why = str(error).partition("\n")[0] or type(error).__name__
                raise UnusableError(f"the chat template fails: {why}") from None
            text = "".join(blocks)
        if any(text[start : start + len(part)] != part for start, part in marked):
            raise UnusableError("the chat template moves text that it marks as the assistant's")
        return text, [(start, start + len(part)) for start, part in marked]


class _Tracker:
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


def _environment(tracker: _Tracker) -> "jinja2.Environment":
    """Returns the sandbox that templates run in, with the names that transformers provides."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation(tracker), loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    for name in ("lipsum", "cycler", "joiner"):
        environment.globals.pop(name)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["namespace"] = _safe_namespace()
    environment.globals["dict"] = lambda *args, **values: dict(*args, **values)
    return environment


# Jinja may be missing, so subclasses of its classes are defined only after its import.


def _generation(tracker: _Tracker) -> "type[Extension]":
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
