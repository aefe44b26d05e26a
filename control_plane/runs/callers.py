"""Who asked for a change: a text that the history keeps beside each change of state.

The guard of the REST interface sets it for the time of a request; a context variable carries it
into the threads that the request's work is done in. What the control plane does by itself has none.
A client names itself, so only the address and the token are proven.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from lectern_common.words import inert_name

MAX_CLIENT = 80
MAX_OUR_CLIENT = 160  # with the name of a user and a machine
_MAX_ADDRESS = 60
_OURS = "lectern/"

_caller: ContextVar[str | None] = ContextVar("caller", default=None)


def caller() -> str | None:
    """Returns who asked for what is being done; None for the control plane itself."""
    return _caller.get()


@contextmanager
def calling(who: str | None) -> Iterator[None]:
    """Has `caller` return `who`."""
    before = _caller.set(who)
    try:
        yield
    finally:
        _caller.reset(before)


def described(client: str, address: str | None, *, from_page: bool, token: str | None) -> str:
    """Returns "lectern/0.3.0 (ann@box) from 127.0.0.1, full token".

    Args:
        client: the User-Agent, of which only what is printable is kept.
        address: where the request came from.
        from_page: the page of this control plane sent it.
        token: which one it showed; None means that none was asked for.
    """
    printable = "".join(character for character in client if character.isprintable())
    limit = MAX_OUR_CLIENT if printable.startswith(_OURS) else MAX_CLIENT
    name = "page" if from_page else printable[:limit].strip() or "a client without a name"
    where = inert_name(address)[:_MAX_ADDRESS] if address else "an unknown address"
    return f"{name} from {where}, {token or 'no'} token"
