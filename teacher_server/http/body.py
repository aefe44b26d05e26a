"""Reads bodies: each of a bounded size and time, and all that are held at once bounded together."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator

from lectern_common.errors import InvalidRequest, Overloaded
from lectern_common.wire.formats import MAX_MESSAGE_BYTES

# Of a body: the largest message of gRPC too.
MAX_BODY_BYTES = MAX_MESSAGE_BYTES
# Of the bodies that are being read or parsed: every connection could otherwise hold a largest one.
_MAX_HELD_BYTES = 8 * MAX_BODY_BYTES
_BODY_SECONDS = 120.0  # from the head to the end of a body, which may trickle


class Bodies:
    """The bodies that one application is reading.

    Args:
        most_bytes: of all of them together.
        seconds: for each.
    """

    def __init__(self, most_bytes: int = _MAX_HELD_BYTES, seconds: float = _BODY_SECONDS) -> None:
        self._most_bytes = most_bytes
        self._seconds = seconds
        self._held = 0

    @contextlib.asynccontextmanager
    async def read(self, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yields a body, which counts as held until the end of the block.

        Raises:
            InvalidRequest: it is too large, or does not end in time.
            Overloaded: too much is held.
        """
        with self._room() as take:
            received: list[bytes] = []
            num_bytes = 0
            try:
                async with asyncio.timeout(self._seconds):
                    async for part in parts:
                        num_bytes += len(part)
                        if num_bytes > MAX_BODY_BYTES:
                            raise too_large()
                        take(len(part))
                        received.append(part)
            except TimeoutError:
                raise _of_status(
                    408, f"the rest of the body did not come within {self._seconds:g} s"
                ) from None
            yield b"".join(received)

    @contextlib.contextmanager
    def _room(self) -> Iterator[Callable[[int], None]]:
        """Yields what takes room for a part; what was taken is given back at the end."""
        taken = 0

        def take(num_bytes: int) -> None:
            nonlocal taken
            if self._held + num_bytes > self._most_bytes:
                raise Overloaded("too many large bodies are being read at once")
            self._held += num_bytes
            taken += num_bytes

        try:
            yield take
        finally:
            self._held -= taken


def too_large() -> InvalidRequest:
    """Returns the error of a body over the cap."""
    return _of_status(413, f"a body may have at most {MAX_BODY_BYTES} bytes")


def _of_status(status: int, message: str) -> InvalidRequest:
    error = InvalidRequest(message)
    error.http_status = status
    return error
