"""Asks for many answers at once, again and again where that may help."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator

from lectern_common.errors import TeacherUnavailable
from lectern_data.asking.answer import Answer, RefusedError, TryAgainError
from lectern_data.asking.requests import Request

# So often a request may fail.
MAX_TRIES = 5
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0

Ask = Callable[[Request], Awaitable[Answer]]


class Asking:
    """Asks a server, with what is known of it so far.

    An outage begins with the first request that fails, and ends with the next reply to any. A
    server that has never been reached is not waited for: its address may be wrong. That it is busy,
    or away, is no fault of a request; unless others were answered meanwhile, as when a server dies
    of each try of this one. And that one request alone fails again and again, as one whose answer
    always takes too long, is no outage: it is given up after its tries.

    Args:
        ask: makes one request once; see Server.ask.
        outage_seconds: how long an outage may last.
        say: told that the server is away and for how long that is borne, and that it is back.
        clock: as time.monotonic.
        sleep: as asyncio.sleep.

    Attributes:
        retries: how often a request was made again.
    """

    def __init__(
        self,
        ask: Ask,
        outage_seconds: float,
        say: Callable[[str], None] = lambda sentence: None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.retries = 0
        self._ask = ask
        self._outage_seconds = outage_seconds
        self._say = say
        self._clock = clock
        self._sleep = sleep
        self._replies = 0
        self._failing_since: float | None = None
        self._failing = set[tuple[str, int]]()  # requests that have failed since then
        self._is_told = False

    async def answer(self, request: Request, max_tries: int = MAX_TRIES) -> Answer:
        """Returns the answer to a request, asking until there is one.

        Raises:
            RefusedError: there will be none.
            TryAgainError: it has failed `max_tries` times, although the server is there.
            TeacherUnavailable: the server has been away for too long, or was never there.
            NotOfferedError, LecternError: see Server.ask.
        """
        tries, pause = 0, _FIRST_PAUSE_SECONDS
        while True:
            replies = self._replies
            try:
                answer = await self._ask(request)
            except TryAgainError as error:
                is_away = error.failure in ("away", "unreached") and replies == self._replies
                tries += not (is_away or error.failure == "busy")
                if tries >= max_tries:
                    raise
                self._fail(request, error)
                self.retries += 1
                await self._sleep(max(pause, error.after_seconds))
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            except RefusedError:
                self._reply()
                raise
            else:
                self._reply()
                return answer

    async def every(
        self,
        requests: Iterator[Request],
        at_once: int,
        on_answer: Callable[[Request, Answer], None],
        on_none: Callable[[Request, RefusedError | TryAgainError], None],
    ) -> None:
        """Makes all requests, `at_once` of them at a time, and hands on what comes of each.

        After an error the requests under way are given up.

        Raises:
            TeacherUnavailable, NotOfferedError, LecternError: see `answer`.
        """

        async def work() -> None:
            for request in requests:
                try:
                    answer = await self.answer(request)
                except (RefusedError, TryAgainError) as error:
                    on_none(request, error)
                else:
                    on_answer(request, answer)

        workers = [asyncio.ensure_future(work()) for _ in range(at_once)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    def _fail(self, request: Request, error: TryAgainError) -> None:
        """Raises TeacherUnavailable unless there is time for another try."""
        if error.failure == "unreached" and not self._replies:
            raise TeacherUnavailable(f"{error}; is the server running, and is --from its address?")
        now = self._clock()
        if self._failing_since is None:
            self._failing_since = now
        self._failing.add((request.key, request.sample))
        is_outage = error.failure != "failed" or len(self._failing) > 1
        if is_outage and now - self._failing_since >= self._outage_seconds:
            raise TeacherUnavailable(
                f"{error}. No reply for {self._outage_seconds:g} s (--outage-seconds)"
            )
        if error.failure != "failed" and not self._is_told:
            self._is_told = True
            self._say(f"{error}; trying again for up to {self._outage_seconds:g} s")

    def _reply(self) -> None:
        self._replies += 1
        self._failing_since = None
        self._failing.clear()
        if self._is_told:
            self._is_told = False
            self._say("the server answers again")
