"""Decides with the first prompt how prompts travel: as chats where the server takes them."""

from collections.abc import Callable

from lectern_common.errors import InvalidRequest
from lectern_data.asking.answer import Answer, RefusedError, TryAgainError
from lectern_data.asking.pool import Asking
from lectern_data.asking.requests import Request
from lectern_data.asking.server import NotOfferedError
from lectern_data.asking.settings import Way
from lectern_data.read.unusable import UnusableError

REMEDY = (
    "set --from to the address before /chat/completions and /completions, which mostly ends in "
    "/v1, or --send to what the server offers"
)
# A server without a chat template answers 500 to each chat.
_TRIES = 2


async def first_answer(
    asking: Asking,
    request_of: Callable[[Way], Request],
    ways: tuple[Way, ...],
    say: Callable[[str], None],
) -> tuple[Way, Request | None, Answer | None]:
    """Returns how prompts travel, and the first request with its answer if it got one.

    Args:
        asking: the server.
        request_of: returns the request for the first prompt; raises UnusableError if a chat
            template fails on it.
        ways: those that are possible, the preferred one first.
        say: told if another than the preferred one is taken.

    Raises:
        InvalidRequest: the server offers none of them.
        LecternError: it cannot be asked at all.
    """
    missing, failed = list[str](), list[str]()
    for way in ways:
        try:
            request = request_of(way)
            answer = await asking.answer(request, _TRIES)
        except NotOfferedError as error:
            missing.append(str(error))
        except (RefusedError, TryAgainError, UnusableError) as error:
            failed.append(str(error))
        else:
            if missing or failed:
                say(f"prompts are sent as {_NAMES[way]} (--send {way}): {(missing + failed)[0]}")
            return way, request, answer
    if len(missing) == len(ways):
        raise InvalidRequest(f"{'; '.join(missing)}; {REMEDY}", "from")
    # It may be this prompt: the next ones will show.
    return ways[0], None, None


_NAMES: dict[Way, str] = {"chat": "chats", "text": "text"}
