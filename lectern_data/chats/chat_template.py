"""Renders a tokenizer's chat template like transformers does, without torch or transformers.

The template is a third party's program; template_sandbox.py is what it can reach. It sees only the
chat, the special tokens and the date that it is given, so equal chats give equal texts.
"""

import datetime
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lectern_common.errors import CorruptData, Misconfigured
from lectern_data.chats.message_fields import message_fields
from lectern_data.chats.template_sandbox import Tracker, environment
from lectern_data.read.chat_rows import REASONING_FIELDS
from lectern_data.read.unusable import UnusableError

if TYPE_CHECKING:
    from jinja2 import nodes

_MAX_TEMPLATE_BYTES = 1 << 20
_GIVEN = {"messages", "tools", "documents", "add_generation_prompt", "strftime_now"}
# Methods of a text that look for another in it.
_LOOKING = {
    *("split", "rsplit", "partition", "rpartition", "find", "rfind", "index", "rindex", "count"),
    *("startswith", "endswith", "removeprefix", "removesuffix", "replace", "strip"),
    *("lstrip", "rstrip"),
}

Span = tuple[int, int]
Messages = list[dict[str, Any]]


class ChatTemplate:
    """A compiled template.

    Attributes:
        source: the template.
        special_tokens: the names that it may use: bos_token, eos_token, ...
        marks_turns: it marks itself what the assistant wrote ({% generation %}).
        inputs: what it reads besides the messages: "tools", "documents", and further names that a
            row may give it, such as "enable_thinking".
        reads_date: it asks for the date.
        message_fields: names among which are those of the fields of messages that it reads; None if
            it may read all.
        looked_for: texts that it looks for in what it is given, such as "</think>".
    """

    def __init__(
        self, source: str, special_tokens: dict[str, str], date: datetime.date | None = None
    ) -> None:
        """Raises CorruptData if it is not a template, Misconfigured if Jinja is missing.

        Args:
            source: the template.
            special_tokens: see above.
            date: what it learns if it asks for the date; None means that asking fails.
        """
        if len(source.encode(errors="replace")) > _MAX_TEMPLATE_BYTES:
            raise CorruptData(f"the chat template is larger than {_MAX_TEMPLATE_BYTES:,} bytes")
        try:
            import jinja2
            from jinja2.meta import find_undeclared_variables
        except ModuleNotFoundError:
            raise Misconfigured(
                "chat templates need Jinja, which is not installed: pip install 'lectern[data]'"
            ) from None
        self.source = source
        self.special_tokens = special_tokens
        self._tracker = Tracker()
        sandbox = environment(self._tracker, date)
        try:
            self._template = sandbox.from_string(source)
            self.marks_turns = self._tracker.blocks_parsed > 0
            tree = sandbox.parse(source)
            names = find_undeclared_variables(tree)
        except (jinja2.TemplateError, RecursionError) as error:
            raise CorruptData(f"the chat template is not a Jinja template: {error}") from None
        self.reads_date = any(
            name.name == "strftime_now" for name in tree.find_all(jinja2.nodes.Name)
        )
        self.message_fields = message_fields(tree)
        self.looked_for = frozenset(_looked_for(tree))
        further = names - _GIVEN - set(special_tokens) - set(sandbox.globals)
        self.inputs = frozenset(further | (names & {"tools", "documents"}))

    def render(
        self, messages: Messages, *, prompt: bool = False, inputs: Mapping[str, Any] | None = None
    ) -> str:
        """Returns the chat as text; with `prompt`, also the start of the assistant's next turn.

        Args:
            messages: at least one.
            prompt: see above.
            inputs: further names that the template may use, such as tools.

        Raises:
            UnusableError: the template fails on the chat.
        """
        return self.render_marked(messages, prompt=prompt, inputs=inputs)[0]

    def render_marked(
        self, messages: Messages, *, prompt: bool = False, inputs: Mapping[str, Any] | None = None
    ) -> tuple[str, list[Span]]:
        """Returns the text, and the (start, end) of the spans marked as the assistant's.

        Raises:
            UnusableError: the template fails on the chat, or marks text that is not in its output.
        """
        names: dict[str, Any] = {"tools": None, "documents": None, **self.special_tokens}
        names.update(inputs or {})
        names.update(
            messages=[_with_reasoning(message) for message in messages],
            add_generation_prompt=prompt,
        )
        with self._tracker.tracking() as (blocks, marked):
            try:
                for block in self._template.generate(names):
                    blocks.append(block)
            except Exception as error:  # the template is a program of its own, and may do anything
                why = str(error).partition("\n")[0] or type(error).__name__
                raise UnusableError(f"the chat template fails: {why}") from None
            text = "".join(blocks)
        if any(text[start : start + len(part)] != part for start, part in marked):
            raise UnusableError("the chat template moves text that it marks as the assistant's")
        return text, [(start, start + len(part)) for start, part in marked]


def _looked_for(tree: "nodes.Template") -> Iterator[str]:
    """Yields the texts in comparisons, and in calls of methods that look for one."""
    from jinja2 import nodes

    calls = [
        call
        for call in tree.find_all(nodes.Call)
        if isinstance(call.node, nodes.Getattr) and call.node.attr in _LOOKING
    ]
    for node in (*tree.find_all(nodes.Compare), *calls):
        for constant in node.find_all(nodes.Const):
            if isinstance(constant.value, str):
                yield constant.value


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Returns the message with its thoughts under the two names that templates read."""
    present = (message.get(name) for name in REASONING_FIELDS)
    found = next((thoughts for thoughts in present if thoughts is not None), None)
    if found is None:
        return message
    return {"thinking": found, **message, "reasoning_content": found}
