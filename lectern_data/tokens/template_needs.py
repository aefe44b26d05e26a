"""What the chat templates of a tokenizer read: fields of rows, and the date."""

import datetime
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from lectern_common.errors import InvalidRequest
from lectern_data.chats.chat_template import ChatTemplate
from lectern_data.read.chat_rows import ARGUMENTS_FIELD, CHAT_FIELDS, MESSAGE_FIELDS
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
    _used: frozenset[str]
    _message_fields: frozenset[str] | None

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
        given = [f"{ARGUMENTS_FIELD}.{name}" for name in (*inputs, *tokenizer.special_tokens)]
        arguments = sorted(inputs - set(CHAT_FIELDS) - {content.field})
        fields = [template.message_fields for template in templates]
        read = [names for names in fields if names is not None]
        return cls(
            replace(content, arguments=tuple(arguments)),
            any(template.reads_date for template in templates),
            frozenset({content.field, ARGUMENTS_FIELD, *inputs, *given}),
            frozenset(MESSAGE_FIELDS).union(*read) if len(read) == len(fields) else None,
        )

    def date(
        self, given: datetime.date | None, begun: Callable[[], datetime.date]
    ) -> datetime.date | None:
        """Returns the date to tell a template; None if none asks for it.

        Args:
            given: the date that is set; None means the one of `begun`.
            begun: returns the day on which the preparation began.

        Raises:
            InvalidRequest: a date is set, but no template asks for it.
        """
        if self.reads_date:
            return given or begun()
        if given is not None:
            raise InvalidRequest(
                "--date has no effect: the tokenizer's chat template does not ask for the date",
                "date",
            )
        return None

    def unused(self, columns: Iterable[str]) -> list[str]:
        """Returns those names of `field_names` that nothing reads."""
        return [name for name in columns if not self._is_used(name)]

    def _is_used(self, name: str) -> bool:
        of_message = name.removeprefix(f"{self.content.field}.")
        if of_message == name:
            return name in self._used
        return self._message_fields is None or of_message in self._message_fields
