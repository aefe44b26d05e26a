"""What becomes of the answers: the dataset that is prepared of them, and what that takes."""

import dataclasses
import datetime
from collections.abc import Callable
from pathlib import Path

from lectern_common.errors import InvalidRequest
from lectern_data.asking.prompts import Prompts
from lectern_data.asking.settings import ANSWERS_SUFFIX, GenerateSettings, Way
from lectern_data.prepare import Prepared, given_tokenizer, prepare
from lectern_data.read.rows import MESSAGES_FIELD, Content
from lectern_data.settings import PrepareSettings, Progress
from lectern_data.tokens.template_needs import TemplateNeeds
from lectern_data.tokens.tokenizer import load_tokenizer

_LATER = (
    f"; or end --output in {ANSWERS_SUFFIX}, and prepare the answers with `lectern data prepare`"
)


class Preparation:
    """Prepares the dataset, and says before anything is asked whether that will work.

    Attributes:
        tokenizer: of the dataset, or the one that renders chats; None if neither is wanted.
        targets: the datasets that will be written.

    Raises:
        NotFound, CorruptData: see load_tokenizer.
    """

    def __init__(self, settings: GenerateSettings) -> None:
        self._settings = settings
        self.tokenizer = None
        path = settings.tokenizer_path
        if path is not None and (settings.makes_dataset or settings.send != "chat"):
            self.tokenizer = load_tokenizer(path, is_chat=True)
        self._has_template = self.tokenizer is not None and (
            self.tokenizer.chat_template is not None
        )
        content = Content(MESSAGES_FIELD, is_chat=True)
        self.targets = self._settings_of(content).targets if settings.makes_dataset else []

    def arguments(self, field: str) -> tuple[str, ...]:
        """Returns further fields of a row that the chat template reads, besides its prompt's."""
        if self.tokenizer is None or not self._has_template:
            return ()
        needs = TemplateNeeds.of(self.tokenizer, Content(field, is_chat=True))
        return needs.content.arguments

    def ways(self, *, takes_text: bool) -> tuple[Way, ...]:
        """Returns how prompts may travel, the preferred way first.

        Args:
            takes_text: prompts may be texts.

        Raises:
            InvalidRequest: not as `send` says.
        """
        can_chat = self._has_template or not self._settings.makes_dataset
        can_text = self._has_template or takes_text
        send = self._settings.send
        if (send == "chat" or not can_text) and not can_chat:
            raise InvalidRequest(
                "the tokenizer has no chat template, which a dataset of chats needs: put "
                f"chat_template.jinja beside its tokenizer.json, or set --tokenizer{_LATER}",
                "tokenizer",
            )
        if send == "text" and not can_text:
            raise InvalidRequest(
                "chats are sent as text by the tokenizer's chat template, and there is none: set "
                "--tokenizer to a folder with one, or --send chat",
                "send",
            )
        if send != "auto":
            return (send,)
        ways: dict[Way, bool] = {"chat": can_chat, "text": can_text}
        return tuple(way for way, is_possible in ways.items() if is_possible)

    def require_ready(self, prompts: Prompts, way: Way) -> None:
        """Raises InvalidRequest if no dataset can be prepared of answers to these prompts."""
        content = _content(prompts, way)
        if not self._settings.makes_dataset:
            return
        try:
            given_tokenizer(self._settings_of(content))
        except InvalidRequest as error:
            raise InvalidRequest(f"{error}{_LATER}", error.field) from None

    def prepare(
        self,
        prompts: Prompts,
        way: Way,
        today: datetime.date,
        *,
        replace: bool,
        on_progress: Progress,
        on_event: Callable[[str], None],
    ) -> Prepared | None:
        """Returns the prepared dataset; None if only the answers are wanted. Raises like prepare.

        Args:
            prompts: those of the answers.
            way: how they travelled.
            today: what a template that asks for the date is told.
            replace: there may be datasets of an earlier call.
            on_progress, on_event: see prepare.
        """
        if not self._settings.makes_dataset:
            return None
        content = _content(prompts, way)
        asks_for_date = (
            content.is_chat
            and self.tokenizer is not None
            and TemplateNeeds.of(self.tokenizer, content).reads_date
        )
        settings = self._settings_of(content, today if asks_for_date else None)
        settings = dataclasses.replace(settings, force=settings.force or replace)
        return prepare(settings, on_progress=on_progress, on_event=on_event)

    def _settings_of(self, content: Content, date: datetime.date | None = None) -> PrepareSettings:
        settings = self._settings
        return PrepareSettings(
            [settings.answers],
            settings.output,
            tokenizer=settings.tokenizer_path or Path(),
            validation_fraction=settings.validation_fraction,
            content=content,
            date=date,
            max_fault_fraction=settings.max_fault_fraction,
            force=settings.force,
        )


def _content(prompts: Prompts, way: Way) -> Content:
    """Returns what the rows of answers hold: chats, unless texts were sent as they are.

    Raises:
        InvalidRequest: some prompts are texts and others chats, and they are not sent as chats.
    """
    chats = Content(MESSAGES_FIELD, is_chat=True)
    if way == "chat" or not prompts.content.takes_text:
        return chats
    are_texts = {prompt.text.startswith('"') for prompt in prompts.read()}
    if len(are_texts) > 1:
        raise InvalidRequest(
            "some prompts are texts and others are chats, so sent as text they would give two "
            "kinds of rows: set --send chat, or generate from each kind alone",
            "send",
        )
    return Content() if are_texts == {True} else chats
