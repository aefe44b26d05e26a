"""Bodies are bounded in size and time, each and together."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from lectern_common.errors import InvalidRequest, Overloaded
from teacher_server.http.body import Bodies


async def parts(*given: bytes, then: asyncio.Event | None = None) -> AsyncIterator[bytes]:
    for part in given:
        yield part
    if then is not None:
        await then.wait()


async def whole(bodies: Bodies, given: AsyncIterator[bytes]) -> bytes:
    async with bodies.read(given) as body:
        return body


def test_what_is_held_together_is_bounded_and_given_back() -> None:
    async def scenario() -> None:
        bodies, rest = Bodies(most_bytes=10), asyncio.Event()
        slow = asyncio.create_task(whole(bodies, parts(b"1234567", then=rest)))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await whole(bodies, parts(b"1234"))
        assert await whole(bodies, parts(b"123")) == b"123"
        rest.set()
        assert await slow == b"1234567"
        assert await whole(bodies, parts(b"12345", b"67890")) == b"1234567890"

    asyncio.run(scenario())


def test_a_body_that_does_not_end_is_given_up_and_its_room_too() -> None:
    async def scenario() -> None:
        bodies = Bodies(most_bytes=8, seconds=0.01)
        with pytest.raises(InvalidRequest, match=r"within 0\.01 s") as error:
            await whole(bodies, parts(b"12345678", then=asyncio.Event()))
        assert error.value.http_status == 408
        assert await whole(bodies, parts(b"12345678")) == b"12345678"

    asyncio.run(scenario())
