"""What the chat templates of a tokenizer read: fields of rows, and the date."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from lectern_data.chats.chat_template import ChatTemplate
from lectern_data.read.chat_rows import ARGUMENTS_FIELD, CHAT_FIELDS
from lectern_data.read.rows import Content
from lectern_data.tokens.tokenizer import DatasetTokenizer


@dataclass(frozen=True)
class TemplateNeeds:
    """What chat templates read.

    Attributes:
        content: of the rows, with every field that is for a template.
        reads_date: a template asks for the date.
    """

    content: Content
    reads_date: bool
    _inputs: frozenset[str]

    @classmethod
    def of(cls, tokenizer: DatasetTokenizer, content: Content) -> "TemplateNeeds":
        """Returns what a tokenizer's templates read of rows with this content.

        Raises:
            CorruptData: a template is not one.
            Misconfigured: Jinja is not installed.
        """
        sources = (tokenizer.chat_template, tokenizer.tool_template)
        templates = [
            ChatTemplate(source, tokenizer.special_tokens)
            for source in sources
            if source is not None
        ]
        inputs = frozenset[str]().union(*(template.inputs for template in templates))
        arguments = sorted(inputs - set(CHAT_FIELDS) - {content.field})
        return cls(
            replace(content, arguments=tuple(arguments)),
            any(template.reads_date for template in templates),
            inputs,
        )

    def unused(self, columns: Iterable[str]) -> list[str]:
        """Returns the fields of rows that nothing reads."""
        used = {self.content.field, ARGUMENTS_FIELD} | self._inputs
        return [name for name in columns if name not in used]
