"""A tokenizer's chat template, rendered as transformers renders it, without torch or transformers.

A template comes with a model, and is a program in the language of Jinja that somebody else wrote.
It runs in Jinja's sandbox, where it reaches no attribute that leads out of it, and sees nothing but
the messages and the special tokens. It is told no time, so that equal chats give equal texts.
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
        special_tokens: what it may name: bos_token, eos_token, ...
        marks_turns: it says itself what the assistant wrote ({% generation %}).
    """

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        """Raises CorruptData where it is no template, Misconfigured where Jinja is missing."""
        if len(source.encode(errors="replace")) > _MAX_TEMPLATE_BYTES:
            raise CorruptData(f"the chat template is over {_MAX_TEMPLATE_BYTES:,} bytes")
        try:
            import jinja2
        except ModuleNotFoundError:
            raise Misconfigured(
                "a chat template is rendered by Jinja, which is not installed; install "
                "lectern[data]"
            ) from None
        self.source = source
        self.special_tokens = special_tokens
        self._tracker = _Tracker()
        try:
            self._template = _environment(self._tracker).from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise CorruptData(f"the chat template is no Jinja template: {error}") from None
        self.marks_turns = self._tracker.blocks_parsed > 0

    def render(self, messages: Messages, *, prompt: bool = False) -> str:
        """Returns the chat as text; with `prompt` also what comes before the assistant's next turn.

        Raises:
            UnusableError: the template fails on it.
        """
        return self.render_marked(messages, prompt=prompt)[0]

    def render_marked(self, messages: Messages, *, prompt: bool = False) -> tuple[str, list[Span]]:
        """Returns the text, and the (start, end) of what the template marks as the assistant's.

        Raises:
            UnusableError: the template fails on it, or marks what is not in its text.
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
                raise UnusableError(f"the chat template fails on it: {why}") from None
            text = "".join(blocks)
        if any(text[start : start + len(part)] != part for start, part in marked):
            raise UnusableError("the chat template marks the assistant's turns elsewhere")
        return text, [(start, start + len(part)) for start, part in marked]


class _Tracker:
    """Notes where {% generation %} blocks come to stand in the text, as transformers does."""

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
    """Returns the sandbox that templates run in, with what transformers gives them."""
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


# Jinja may be missing, so classes made of its own are made where it is imported.


def _generation(tracker: _Tracker) -> "type[Extension]":
    """Returns the {% generation %} block, which tells `tracker` of itself."""
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
    """Returns Jinja's namespace without names that hide or reach what Python keeps under
    underscores.
    """
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
    # Jinja's own escapes HTML.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
