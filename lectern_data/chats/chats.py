"""Encodes chats as token ids, with a mask of the assistant's tokens: only they carry loss.

Or as prompts: then step 4 is the prompt for the next message, and nothing is learnt.

    ChatEncoder.encode
      1. marks control tokens that the chat only spells      control_tokens.py
      2. chooses the form that the template takes            forms.py
      3. refuses a chat of which it drops a message          dropped_turns.py
      4. finds the assistant's turns in the rendered text    answers.py
      5. encodes the text, and masks the turns' tokens

A template is a third party's program, whose nested loops may never end: it gets ten seconds of
processor time per chat, of a long one for every fifty messages.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from lectern_data.chats.answers import Sequence, prompt_of, sequences_of, without_end
from lectern_data.chats.chat import Chat, Renderings
from lectern_data.chats.chat_template import ChatTemplate
from lectern_data.chats.control_tokens import ControlTokens, Tokens
from lectern_data.chats.dropped_turns import require_turns
from lectern_data.chats.forms import fitted
from lectern_data.read.chat_rows import ASSISTANT, TOOLS_FIELD, is_cut, is_learnt
from lectern_data.read.unusable import UnusableError

_MAX_SECONDS = 10.0
# Characters whose tokens are in memory at a time. The library's tokens take far more room than
# ids, and a chat may be rendered as often as it has answers.
_TEXT_AT_A_TIME = 1 << 21

Encoded = tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]
"""Of a sequence: ids uint32; mask uint8, 1 for what is learnt."""


class EndlessError(Exception):
    """The template does not finish on a chat; `index` counts the chats before it."""

    def __init__(self, index: int) -> None:
        super().__init__(f"the chat template does not finish on chat {index + 1}")
        self.index = index


@dataclass(frozen=True)
class EncodedChat:
    """A chat as ids.

    Attributes:
        sequences: the whole chat, or one for each answer (see answers.py).
        unasked: turns of the assistant that nothing asks for; they are not learnt.
    """

    sequences: list[Encoded]
    unasked: int = 0


@dataclass(frozen=True)
class _Rendered:
    """A chat as texts. If `is_spelt`, they are for ControlTokens.encode."""

    sequences: list[Sequence]
    unasked: int
    is_spelt: bool


class ChatEncoder:
    """Turns chats into ids and masks.

    Changes the tokenizer: it recognises special tokens in text, and reports where tokens are with
    the white space that they hold.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        tool_template: ChatTemplate | None = None,
        *,
        is_prompt: bool = False,
    ) -> None:
        """`tool_template` is for chats with tools; None means the same. See the module."""
        tokenizer.encode_special_tokens = False
        # Without special tokens to add, all that a post-processor does is to trim the offsets.
        tokenizer.post_processor = None
        self._tokenizer = tokenizer
        self._template = template
        self._tool_template = tool_template or template
        self._is_prompt = is_prompt
        self._control = ControlTokens(tokenizer)

    def encode(self, chats: list[str]) -> Iterator[EncodedChat | UnusableError]:
        """Yields each chat (a text from Content.of) as ids, or why it is unusable.

        The mask is 1 for tokens within a turn of the assistant, and for the token that ends the
        turn. No token is added: the template decides what starts and ends a chat.

        Raises:
            EndlessError: the template takes too long on a chat.
        """
        done = 0
        while done < len(chats):
            rendered = self._some(chats, done)
            yield from self._encoded(rendered)
            done += len(rendered)

    def _some(self, chats: list[str], first: int) -> list[_Rendered | UnusableError]:
        """Renders chats from `first` on, until they are as much text as is encoded at a time."""
        rendered: list[_Rendered | UnusableError] = []
        size = 0
        with _TimeLimit() as limit:
            for index in range(first, len(chats)):
                chat = Chat.loaded(chats[index])
                limit.restart(len(chat.messages))
                try:
                    entry = self._rendered(chat)
                except (UnusableError, TimeoutError) as error:
                    if limit.is_over or isinstance(error, TimeoutError):
                        raise EndlessError(index) from None
                    rendered.append(error)
                    continue
                rendered.append(entry)
                size += sum(len(sequence.text) for sequence in entry.sequences)
                if size >= _TEXT_AT_A_TIME:
                    break
        return rendered

    def _encoded(
        self, rendered: list[_Rendered | UnusableError]
    ) -> Iterator[EncodedChat | UnusableError]:
        every = self._tokens_of(rendered)
        for entry in rendered:
            if isinstance(entry, UnusableError):
                yield entry
                continue
            encode = self._control.encode if entry.is_spelt else self._encode
            texts = (sequence.text for sequence in entry.sequences)
            tokens = map(encode, texts) if entry.is_spelt else every
            try:
                yield EncodedChat(
                    [self._masked(one, next(tokens), encode) for one in entry.sequences],
                    entry.unasked,
                )
            except UnusableError as error:
                yield error

    def _rendered(self, chat: Chat) -> _Rendered:
        has_tools = chat.inputs.get(TOOLS_FIELD) is not None
        template = self._tool_template if has_tools else self._template
        marked, mark = self._control.marked(chat.as_seen(), template.looked_for)
        form = fitted(template, marked)
        renderings = Renderings(template, form)
        if self._is_prompt:
            prompt = prompt_of(renderings)
            require_turns(template, form, prompt.text, is_prompt=True)
            prompt = self._control.unmarked(prompt, mark) if mark else prompt
            return _Rendered([prompt], 0, bool(mark))
        require_turns(template, form, renderings.text(len(form.messages)))
        context = {
            index
            for index, message in enumerate(chat.messages)
            if message["role"] == ASSISTANT and not is_learnt(message)
        }
        sequences, unasked = sequences_of(
            renderings, marks_turns=template.marks_turns, context=context
        )
        if is_cut(chat.messages[-1]) and is_learnt(chat.messages[-1]):
            sequences[-1] = without_end(sequences[-1], form.messages[-1].get("content"))
        if mark:
            sequences = [self._control.unmarked(sequence, mark) for sequence in sequences]
        return _Rendered(sequences, unasked, bool(mark))

    def _tokens_of(self, rendered: list[_Rendered | UnusableError]) -> Iterator[Tokens]:
        """Yields the tokens of all texts of chats that spell no control token, in order."""
        batch, size = list[str](), 0
        for entry in rendered:
            if isinstance(entry, UnusableError) or entry.is_spelt:
                continue
            for sequence in entry.sequences:
                batch.append(sequence.text)
                size += len(sequence.text)
                if size >= _TEXT_AT_A_TIME:
                    yield from self._batch(batch)
                    batch, size = [], 0
        yield from self._batch(batch)

    def _batch(self, texts: list[str]) -> Iterator[Tokens]:
        return map(Tokens.of, self._tokenizer.encode_batch(texts, add_special_tokens=False))

    def _encode(self, text: str) -> Tokens:
        return Tokens.of(self._tokenizer.encode(text, add_special_tokens=False))

    def _masked(
        self, sequence: Sequence, found: Tokens, encode: Callable[[str], Tokens]
    ) -> Encoded:
        """Returns a sequence's ids and mask, of the tokens of its text."""
        cut = sequence.prompt_chars
        if cut:
            prompt = self._prompt(sequence.text[:cut], found, encode)
            if found.ids[: len(prompt.ids)].tolist() != prompt.ids.tolist():
                found = _joined(prompt, _behind(sequence.text[cut:], encode), cut)
        return found.ids, _mask(found, self._control.among(found.ids), sequence)

    def _prompt(self, text: str, found: Tokens, encode: Callable[[str], Tokens]) -> Tokens:
        """Returns the tokens that a prompt has alone, of those that it has in a longer text.

        Only behind its last control token they can differ.
        """
        controls = np.flatnonzero(self._control.among(found.ids) & (found.ends <= len(text)))
        if not len(controls):
            return encode(text)
        last = int(controls[-1])
        begin = int(found.starts[last])
        before = Tokens(found.ids[:last], found.starts[:last], found.ends[:last])
        return _joined(before, encode(text[begin:]), begin)


def _behind(text: str, encode: Callable[[str], Tokens]) -> Tokens:
    """Returns the tokens of a text that continues another.

    Some tokenizers put a space before the first word of a text. Behind a line break they do not.
    """
    line_break, found = encode("\n").ids.tolist(), encode("\n" + text)
    size = len(line_break)
    if not size or found.ids[:size].tolist() != line_break:
        return encode(text)
    return Tokens(found.ids[size:], found.starts[size:] - 1, found.ends[size:] - 1)


def _joined(prompt: Tokens, answer: Tokens, cut: int) -> Tokens:
    return Tokens(
        np.concatenate([prompt.ids, answer.ids]),
        np.concatenate([prompt.starts, answer.starts + cut]),
        np.concatenate([prompt.ends, answer.ends + cut]),
    )


def _mask(
    tokens: Tokens, is_special: npt.NDArray[np.bool_], sequence: Sequence
) -> npt.NDArray[np.uint8]:
    """Returns 1 for the tokens that lie in a span, and for the special token that ends it.

    A token without width stands for something that the text does not have, such as a space before
    the first word; it belongs to what follows.
    """
    starts, ends = tokens.starts, tokens.ends
    mask = np.zeros(len(tokens.ids), np.uint8)
    for number, (begin, end) in enumerate(sequence.spans, 1):
        within = np.flatnonzero((starts >= begin) & (ends <= end) & (starts < end))
        specials = within[is_special[within]]
        if len(specials) and not sequence.text[ends[specials[-1]] : end].strip():
            # White space after the token that ends the turn belongs to the template.
            within = within[within <= specials[-1]]
        mask[within] = 1
        follows = int(np.searchsorted(starts, end))
        ended = len(within) and is_special[within[-1]]
        is_there = follows < len(starts) and starts[follows] == end and is_special[follows]
        has_end = not sequence.is_cut or number < len(sequence.spans)
        if is_there and has_end and not ended:
            mask[follows] = 1
    return mask


class _TimeLimit:
    """Raises TimeoutError in code that still runs _MAX_SECONDS of processor time after `restart`.

    It uses a signal, which reaches only the main thread: prepare and its processes render there;
    other threads have no limit. A single Python operation is not interrupted either.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._works = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "_TimeLimit":
        if self._works:
            self._before = signal.signal(signal.SIGVTALRM, self._interrupt)
        return self

    def restart(self, messages: int) -> None:
        if self._works:
            seconds = _MAX_SECONDS * max(1.0, messages / 50)
            # Repeated every second: code in the template may catch the first one.
            signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1.0)

    def __exit__(self, *_: object) -> None:
        if self._works:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, self._before)

    def _interrupt(self, *_: object) -> None:
        self.is_over = True
        raise TimeoutError
