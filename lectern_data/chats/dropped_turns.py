"""Refuses chats of which the template writes some message nowhere.

A message whose text stands in the chat as it is, and can come from nowhere else, is written. But
templates may rewrite what was said: they take out thoughts, move a system prompt into a question,
encode a tool's result. So a word is put into the messages that are left, and must make a
difference. The lists of messages stay those of the chat, so the template sees nothing that no
caller would give it.
"""

from collections.abc import Callable, Collection

from lectern_data.chats.answers import prompt_of, sequences_of
from lectern_data.chats.chat import Chat, Renderings
from lectern_data.chats.chat_template import ChatTemplate, Messages
from lectern_data.read.chat_rows import called
from lectern_data.read.unusable import UnusableError

# A shorter text may be in others by chance, or be what the template writes anyway.
_MIN_CHARS = 16


def require_turns(
    template: ChatTemplate, chat: Chat, text: str, *, is_prompt: bool = False
) -> None:
    """Raises UnusableError if a message's text is neither in the chat nor in any sequence of it.

    A message that calls functions is not looked at: forms.py sees to it that its calls are written.

    Args:
        template: the template.
        chat: the chat.
        text: the chat as the template renders it.
        is_prompt: the text is the prompt for its next message.
    """
    places = _not_seen(template, chat, text)
    if not places:
        return
    told = _with_words(chat, places)
    try:
        text = template.render(told.messages, prompt=is_prompt, inputs=told.inputs)
        lost = [index for index in places if _word(index) not in text]
        if lost:
            texts = _texts(template, told, is_prompt=is_prompt)
            lost = [index for index in lost if not any(_word(index) in one for one in texts)]
    except UnusableError:  # it does not take every text; then one message of each role will do
        roles = {chat.messages[index]["role"]: index for index in reversed(places)}
        lost = sorted(roles.values())
    if not lost:
        return

    def differs(index: int, put: Callable[[str, str], str]) -> bool:
        """Returns whether a word in the message makes a difference, be it that it fails."""
        try:
            told = _with_words(chat, [index], put)
            return _texts(template, told, is_prompt=is_prompt) != before
        except UnusableError:
            return True

    before = _texts(template, chat, is_prompt=is_prompt)
    for index in lost:
        if not (differs(index, _behind) or differs(index, _before)):
            role = chat.messages[index]["role"]
            raise UnusableError(
                f"the chat template writes nothing for message {index + 1}, whose role is "
                f"{role[:40]!r}"
            )


def _not_seen(template: ChatTemplate, chat: Chat, text: str) -> list[int]:
    """Returns the places of messages whose text is not in `text`, or may come from elsewhere."""
    everything = "\n".join(chat.strings())
    places = []
    for index, message in enumerate(chat.messages):
        said = message.get("content")
        said = said.strip() if isinstance(said, str) else ""
        is_seen = (
            len(said) >= _MIN_CHARS
            and said in text
            and everything.count(said) == 1
            and said not in template.source
        )
        if not is_seen and _says(message):
            places.append(index)
    return places


def _texts(template: ChatTemplate, chat: Chat, *, is_prompt: bool) -> list[str]:
    """Returns the whole chat as text, and the texts of its sequences; or the prompt."""
    renderings = Renderings(template, chat)
    if is_prompt:
        return [prompt_of(renderings).text]
    sequences, _ = sequences_of(renderings, marks_turns=template.marks_turns)
    return [renderings.text(len(chat.messages)), *(sequence.text for sequence in sequences)]


def _says(message: dict[str, object]) -> bool:
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    return isinstance(content, str) and bool(content.strip()) and not called(message)


def _word(index: int) -> str:
    return f"lectern{index}."


def _behind(text: str, word: str) -> str:
    return f"{text} {word}"


def _before(text: str, word: str) -> str:
    return f"{word} {text}"


def _with_words(
    chat: Chat, places: Collection[int], put: Callable[[str, str], str] = _behind
) -> Chat:
    messages: Messages = list(chat.messages)
    for index in places:
        content = messages[index]["content"]
        if isinstance(content, str):
            changed: object = put(content, _word(index))
        else:
            changed = [{**part, "text": put(part["text"], _word(index))} for part in content]
        messages[index] = {**messages[index], "content": changed}
    return Chat(messages, chat.inputs)
