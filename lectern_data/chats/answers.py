"""Finds in rendered text what the assistant says, with the prompt that it answers.

A chat is one sequence if every prompt is the beginning of the text with its answer, and that text
the beginning of the whole chat. Some templates break this: they take the thoughts out of earlier
turns, drop a system prompt once an answer follows, or put `<think>` only into the prompt. Then each
answer gets a sequence of its own, whose beginning is exactly the prompt that a model would be given
for it.

A template is only ever called with lists that somebody would call it with: never an empty one, and
with a prompt only if the last message is not the assistant's own.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from lectern_data.chats.chat import Renderings
from lectern_data.chats.chat_template import Span
from lectern_data.read.chat_rows import ASSISTANT
from lectern_data.read.unusable import UnusableError

_SYSTEM = ("system", "developer")
# Of a cut answer, what is looked for if its beginning is not in the text.
_TAIL_CHARS = 64
# A tag at the end of a prompt.
_OPENING = re.compile(r"(?P<tag><(?P<name>[^<>/\s]+)>)(?P<space>\s*)$")


@dataclass(frozen=True)
class Sequence:
    """A text to train on.

    Attributes:
        text: the whole text.
        spans: (start, end) of what is learnt.
        prompt_chars: length of the prompt, which a model gets as ids of its own; 0 if the text is a
            whole chat.
        is_cut: the last span is an answer that was cut, so what follows it is not its end.
    """

    text: str
    spans: list[Span]
    prompt_chars: int = 0
    is_cut: bool = False


@dataclass(frozen=True)
class _Turn:
    """One message of the assistant.

    `prompt` is the text that asks for it, `answer` follows the prompt, and `offset` is where the
    answer begins in the text with it; None if the answer is not in that text as it is.
    """

    prompt: str
    answer: str
    offset: int | None


def sequences_of(
    chat: Renderings, *, marks_turns: bool, context: Collection[int] = ()
) -> tuple[list[Sequence], int]:
    """Returns the chat's sequences, and how many of the assistant's turns nothing asks for.

    Such turns, at the beginning of a chat, are context and not learnt.

    Args:
        chat: the chat.
        marks_turns: the template marks what the assistant says.
        context: places of messages of the assistant that are not learnt, because the chat says so.

    Raises:
        UnusableError: an answer cannot be found exactly, or the template fails on the chat.
    """
    turns = [place for place, one in enumerate(chat.messages) if one["role"] == ASSISTANT]
    begin = _first_question([message["role"] for message in chat.messages])
    asked = [place for place in turns if place > begin]
    greetings = len([place for place in turns if place < begin and place not in context])
    sequences = _whole(chat, asked, marks_turns=marks_turns, context=context)
    if sequences is None:
        learnt = [index for index in asked if index not in context]
        sequences = [_alone(chat, index, marks_turns=marks_turns) for index in learnt]
    sequences = [one for one in sequences if any(start < end for start, end in one.spans)]
    if not sequences:
        if not asked:
            raise UnusableError("the assistant speaks only before anything is asked")
        if all(index in context for index in asked):
            raise UnusableError("what is learnt of the assistant is only said before any question")
        raise UnusableError("the chat template renders no text for the assistant's turns")
    is_whole_and_marked = marks_turns and not sequences[0].prompt_chars
    return sequences, 0 if is_whole_and_marked else greetings


def prompt_of(chat: Renderings) -> Sequence:
    """Returns what a model is given to answer a chat, whose last message is not the assistant's.

    Nothing of it is learnt.

    Raises:
        UnusableError: the template fails on the chat.
    """
    return Sequence(chat.prompt(len(chat.messages)), [])


def without_end(sequence: Sequence, content: object) -> Sequence:
    """Returns a sequence whose last answer was cut: nothing behind its content is learnt.

    Args:
        sequence: ends with the answer.
        content: of the answer's message.

    Raises:
        UnusableError: the content is not in the text as it is.
    """
    said = content.strip() if isinstance(content, str) else ""
    start, end = sequence.spans[-1]
    for words in (said, said[-_TAIL_CHARS:]):  # thoughts before it may stand in the prompt
        place = sequence.text.rfind(words, start, end)
        if words and place >= 0:
            spans = [*sequence.spans[:-1], (start, place + len(words))]
            return replace(sequence, spans=spans, is_cut=True)
    raise UnusableError("its last answer was cut, and cannot be found in the text")


def _first_question(roles: list[str]) -> int:
    """Returns the place of the first message that asks for something; all if there is none.

    A system prompt asks only if nobody else does.
    """
    asking = [place for place, role in enumerate(roles) if role not in (ASSISTANT, *_SYSTEM)]
    system = [place for place, role in enumerate(roles) if role in _SYSTEM]
    return [*asking, *system, len(roles)][0]


def _whole(
    chat: Renderings, asked: list[int], *, marks_turns: bool, context: Collection[int]
) -> list[Sequence] | None:
    """Returns the chat as one sequence; None if each answer needs one of its own."""
    text, marks = chat.marked(len(chat.messages))
    if not all(text.startswith(chat.text(index + 1)) for index in asked):
        return None
    if marks_turns:
        return [Sequence(text, _without(chat, marks, asked, context))]
    spans = []
    for index in asked:
        if index in context:
            continue
        before, after = _prompt(chat, index), chat.text(index + 1)
        if not after.startswith(before):
            return None
        spans.append((len(before), len(after)))
    return [Sequence(text, spans)]


def _without(
    chat: Renderings, marks: list[Span], asked: list[int], context: Collection[int]
) -> list[Span]:
    """Returns the marks that are not in a message of `context`.

    Of greetings none is left if one is context: no prompt shows where each begins.
    """
    left_out = []
    for index in sorted(context):
        if index in asked:
            before, after = _prompt(chat, index), chat.text(index + 1)
            left_out.append((_common(before, after), len(after)))
        elif asked:
            before, after = _prompt(chat, asked[0]), chat.text(asked[0] + 1)
            left_out.append((0, _common(before, after)))
    return [
        (start, end)
        for start, end in marks
        if not any(begin < end <= stop for begin, stop in left_out)
    ]


def _alone(chat: Renderings, index: int, *, marks_turns: bool) -> Sequence:
    """Returns the sequence of one answer: its prompt, and what follows."""
    turn = _turn(chat, index)
    begin, text = len(turn.prompt), turn.prompt + turn.answer
    if not marks_turns or turn.offset is None:
        return Sequence(text, [(begin, len(text))], begin)
    moved = begin - turn.offset
    marks = chat.marked(index + 1)[1]
    spans = [(max(start, turn.offset) + moved, end + moved) for start, end in marks]
    return Sequence(text, [(start, end) for start, end in spans if end > begin], begin)


def _prompt(chat: Renderings, index: int) -> str:
    """Returns the text that comes before the assistant's message `index`."""
    if chat.messages[index - 1]["role"] != ASSISTANT:
        return chat.prompt(index)
    # The assistant goes on by itself. Nobody asks for that, so it gets the same start of a turn as
    # the message before it.
    first = index - 1
    while chat.messages[first - 1]["role"] == ASSISTANT:
        first -= 1
    before, prompt = chat.text(first), chat.prompt(first)
    if not prompt.startswith(before):
        raise _not_found(
            index, "it follows another of the assistant's, and nothing shows its start"
        )
    return chat.text(index) + prompt[len(before) :]


def _turn(chat: Renderings, index: int) -> _Turn:
    prompt, text = _prompt(chat, index), chat.text(index + 1)
    if text.startswith(prompt):
        return _Turn(prompt, text[len(prompt) :], len(prompt))
    same = _common(prompt, text)
    answer = _begun(prompt, text, same, chat.messages[index].get("content"))
    if answer is not None:
        return _Turn(prompt, answer, None)
    offset = _behind_rewritten(chat, index, prompt, text)
    if offset is not None:
        return _Turn(prompt, text[offset:], offset)
    raise _not_found(
        index,
        f"the prompt for it goes on with {prompt[same : same + 40]!r}, the chat with "
        f"{text[same : same + 40]!r}; write the message as the model says it after that prompt, or "
        "use a template whose chats go on as its prompts do",
    )


def _begun(prompt: str, text: str, same: int, content: object) -> str | None:
    """Returns what follows a prompt that opens the thoughts itself, as with `<think>`.

    The template shows an answer without its thoughts, but the message holds them: with the opening
    that the prompt has already, or only with what closes it. What the template puts behind the
    message ends the answer. None if the message has no thoughts.
    """
    opening = _OPENING.search(prompt)
    if opening is None or opening.start() > same or not isinstance(content, str):
        return None
    said, tag, closing = content.strip(), opening["tag"], f"</{opening['name']}>"
    if said.startswith(tag):
        said = said.removeprefix(tag).removeprefix(opening["space"])
    elif tag in said:
        return None
    _, closes, after = said.rpartition(closing)
    shown, after = text[opening.start() :], after.strip()
    place = shown.rfind(after)
    if not closes or not after or place < 0 or shown[:place].strip() not in content:
        return None
    return said + shown[place + len(after) :]


def _behind_rewritten(chat: Renderings, index: int, prompt: str, text: str) -> int | None:
    """Returns where the answer begins in a text whose earlier part is not as in the prompt.

    It is behind the end of the prompt, as far back as the text has it: at least the whole start of
    the turn, and the message before it.
    """
    asked = chat.messages[index - 1]
    if asked["role"] == ASSISTANT or not isinstance(asked.get("content"), str):
        return None
    low, high = 1, len(prompt)
    if prompt[-low:] not in text:
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if prompt[-middle:] in text else (low, middle - 1)
    end = prompt[-low:]
    start_of_turn = prompt[_common(prompt, chat.text(index)) :]
    has_all = asked["content"].strip() in end and end.endswith(start_of_turn)
    return text.find(end) + low if has_all and text.count(end) == 1 else None


def _common(one: str, other: str) -> int:
    """Returns the length of the common beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def _not_found(index: int, why: str) -> UnusableError:
    return UnusableError(f"cannot find the assistant's message {index + 1} in the text: {why}")
