"""Sends replies in pieces, each when the client has taken those before it, and bounds those held.

Given whole to the transport, a reply would count as sent while all of it waits in memory.
"""

import asyncio
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lectern_common.errors import Overloaded

PIECE_BYTES = 256 << 10
# Of one reply: its rows and its JSON are whole in memory, as objects several times as large.
MAX_REPLY_BYTES = 128 << 20
# Of all replies that are asked, computed or being sent.
_MAX_HELD_BYTES = 4 * MAX_REPLY_BYTES


class Replies:
    """How much the replies of one application may hold together, in bytes."""

    def __init__(self, most_bytes: int = _MAX_HELD_BYTES) -> None:
        self._most_bytes = most_bytes
        self.held = 0

    def take(self, num_bytes: int) -> Callable[[], None]:
        """Takes room for a reply; returns what gives it back, once.

        Raises:
            Overloaded: too much is held.
        """
        if self.held + num_bytes > self._most_bytes:
            raise Overloaded("too many large replies are being computed or sent at once")
        self.held += num_bytes
        left = [num_bytes]

        def give_back() -> None:
            self.held -= left.pop() if left else 0

        return give_back


class Reply(Response):
    """A JSON reply that is sent piece by piece.

    Args:
        content: its bytes.
        sent: called when the client has taken all of it, and not if it left before.
        ended: called in any case.
    """

    media_type = "application/json"

    def __init__(self, content: bytes, sent: Callable[[], None], ended: Callable[[], None]) -> None:
        super().__init__(content)
        self._sent = sent
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(until_gone(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            whole = memoryview(self.body)
            for start in range(0, len(whole), PIECE_BYTES):
                piece = bytes(whole[start : start + PIECE_BYTES])
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                if gone.done():
                    return
            # Which waits until the last piece is taken.
            await send({"type": "http.response.body", "body": b"", "more_body": True})
            if gone.done():
                return
            self._sent()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._ended()
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)


async def until_gone(receive: Receive) -> None:
    """Returns when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass
