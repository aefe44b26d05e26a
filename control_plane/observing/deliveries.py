"""Sends alerts to the receiver until it has them: in a thread of its own, at least once each.

An attempt that fails is repeated after 10 s, then twice as long each time, at most an hour, and
given up after a day; the receiver's Retry-After is kept to. What is pending is in the database, so
a restart goes on with it. At most MESSAGES messages are sent in a minute: if more alerts are due
than that, or as many have failed, they are folded into one message that says how many there are,
and stay one.
"""

import asyncio
import itertools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from control_plane.observing.receiver import Answer, send
from control_plane.runs.alerts import MAX_ALERTS, Alert, Alerts
from lectern_common.errors import Conflict, Overloaded
from lectern_common.logs import get_logger
from lectern_common.run.untrusted import cut
from lectern_common.run.webhook import Receiver

BODY_VERSION = 1
MESSAGES, WINDOW_SECONDS = 10, 60.0
MAX_AT_ONCE = 4
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 10.0, 3600.0
GIVE_UP_SECONDS = 86_400.0
IDLE_SECONDS = 5.0  # between two looks at the outbox, if nothing wakes it earlier
_MAX_CONTENT = 1900  # characters; Discord takes 2,000

_T = TypeVar("_T")
Send = Callable[[Receiver, str, dict[str, Any]], Coroutine[Any, Any, Answer]]

_log = get_logger()


class Deliveries:
    """Delivers pending alerts.

    Args:
        alerts: the outbox.
        receiver: where they go; None delivers none.
        send: posts one message.
        clock: Unix seconds.
        monotonic: seconds that never go back.

    Attributes:
        page: the address of the page, for links to runs; None links none.
    """

    def __init__(
        self,
        alerts: Alerts,
        receiver: Receiver | None,
        send: Send = send,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.receiver = receiver
        self.page: str | None = None
        self._alerts = alerts
        self._send = send
        self._clock = clock
        self._monotonic = monotonic
        self._in_flight: set[int] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sent_at: deque[float] = deque(maxlen=MESSAGES)
        self._paused_until = float("-inf")
        self._due: dict[int, float] = {}  # by `seq`: of those that failed here, by `monotonic`
        self._unrecorded: dict[int, tuple[Alert, Answer]] = {}  # by `seq`
        self._tests = itertools.count(1)
        self._is_testing = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()
        self._ended = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread, if there is a receiver."""
        if self.receiver is None:
            return
        for name in ("httpx", "httpcore"):  # whose lines have the whole URL
            logging.getLogger(name).setLevel(logging.WARNING)
        self._ended = False
        self._loop = asyncio.new_event_loop()
        # Names are looked up there: a name server that hangs delays no other part of this process.
        pool = ThreadPoolExecutor(MAX_AT_ONCE + 1, thread_name_prefix="alert")
        self._loop.set_default_executor(pool)
        self._thread = threading.Thread(
            target=self._keep, args=(self._loop, pool), name="alerts", daemon=True
        )
        self._thread.start()

    def wake(self) -> None:
        """Has it look at the outbox now; from any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._woken.set)

    def close(self) -> None:
        """Ends the thread; what is in flight is cancelled, and sent again by the next process."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        self._ended = True
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(loop.stop)
        thread.join()
        self._loop = self._thread = None

    def test(self) -> Future[Answer]:
        """Sends a test alert now; the result is what the receiver answered.

        Raises:
            Conflict: there is no receiver.
            Overloaded: another test is being sent.
        """
        if self.receiver is None or self._loop is None:
            raise Conflict(
                "no webhook is set: start the control plane with --alert-webhook-file NAME, a file "
                "under the secrets root with the receiver's URL"
            )
        if not self._is_testing.acquire(blocking=False):
            raise Overloaded("another test alert is being sent; try again in 10 s", 10.0)
        now = self._clock()
        data = body(
            Alert(0, 0, now, "test", None, None, None, None, None, "this is a test alert"), None
        )
        name = f"test-{int(now)}-{next(self._tests)}"

        async def post() -> Answer:
            return await self._begin(self._post(name, data))

        sent = asyncio.run_coroutine_threadsafe(post(), self._loop)
        sent.add_done_callback(lambda _: self._is_testing.release())
        return sent

    # ---- in the thread -----------------------------------------------------------------------

    def _keep(self, loop: asyncio.AbstractEventLoop, pool: ThreadPoolExecutor) -> None:
        asyncio.set_event_loop(loop)
        try:
            following = loop.create_task(self._follow())
            loop.run_forever()
            left = (following, *self._tasks)
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            loop.close()

    async def _follow(self) -> None:
        # Not only by cancellation: wait_for swallows one that comes together with a wake.
        while not self._ended:
            self._woken.clear()
            try:
                self._look()
            except Exception as error:  # the database may be busy: the next look may succeed
                _log.warning("alerts not looked at", error=repr(error))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), IDLE_SECONDS)

    def _look(self) -> None:
        """Begins to send what is due."""
        for alert, answer in list(self._unrecorded.values()):
            self._record(alert, answer)
        now = self._monotonic()
        pending = self._alerts.pending()
        self._due = {one.seq: self._due[one.seq] for one in pending if one.seq in self._due}
        waiting = [one for one in pending if one.seq not in self._in_flight]
        late = [one.seq for one in waiting if one.attempts > 0]
        if len(late) > MESSAGES:
            self._alerts.fold(late)
            waiting = [one for one in waiting if one.seq not in late[:-1]]
        due = [one for one in waiting if self._is_due(one, now)]
        left = MESSAGES - sum(now - at < WINDOW_SECONDS for at in self._sent_at)
        if not due or left <= 0 or now < self._paused_until:
            return
        if len(due) > left:
            self._alerts.fold([one.seq for one in due])
            due = due[-1:]
        for one in due[: MAX_AT_ONCE - len(self._in_flight)]:
            self._sent_at.append(now)
            self._in_flight.add(one.seq)
            self._begin(self._deliver(one))

    def _begin(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _is_due(self, alert: Alert, now: float) -> bool:
        if alert.next_try_at is None:
            return False
        if alert.seq in self._due:
            return now >= self._due[alert.seq]
        seconds = alert.next_try_at - self._clock()
        # Nothing is ever put off for longer than a day: the clock was set back.
        return seconds <= 0 or seconds > GIVE_UP_SECONDS

    async def _deliver(self, alert: Alert) -> None:
        try:
            folded = self._alerts.folded(alert.seq)
            shown = alert if len(folded) < 2 else _several(folded)
            answer = await self._post(delivery_of(alert), body(shown, self.page))
            self._unrecorded[alert.seq] = alert, answer
            self._record(alert, answer)
        except Exception as error:  # the database may be full: what has arrived is not sent again
            _log.warning("alert's delivery not recorded", alert=alert.seq, error=repr(error))
            self._due[alert.seq] = self._monotonic() + FIRST_DELAY_SECONDS
        finally:
            if alert.seq not in self._unrecorded:
                self._in_flight.discard(alert.seq)
                self._woken.set()

    async def _post(self, delivery: str, data: dict[str, Any]) -> Answer:
        if self.receiver is None:
            raise RuntimeError("there is no receiver")  # the thread runs only with one
        return await self._send(self.receiver, delivery, data)

    def _record(self, alert: Alert, answer: Answer) -> None:
        """Records what became of an attempt. Raises SQLAlchemyError, and is then called again."""
        self._recorded(alert, answer)
        del self._unrecorded[alert.seq]
        self._in_flight.discard(alert.seq)

    def _recorded(self, alert: Alert, answer: Answer) -> None:
        attempts, now = alert.attempts + 1, self._clock()
        to = None if self.receiver is None else self.receiver.shown
        said = {"alert": alert.seq, "kind": alert.kind, "to": to, "attempt": attempts}
        if answer.error is None:
            self._alerts.delivered(alert.seq, attempts)
            _log.info("alert delivered", **said)
            return
        if not answer.again or now - alert.at > GIVE_UP_SECONDS:
            error = answer.error if not answer.again else f"{answer.error}; given up after a day"
            self._alerts.not_delivered(alert.seq, attempts, error, None)
            _log.error("alert given up", **said, error=error)
            return
        delay = min(FIRST_DELAY_SECONDS * 2.0 ** min(attempts - 1, 30), LONGEST_DELAY_SECONDS)
        if answer.retry_after is not None:
            delay = max(answer.retry_after, 1.0)
            self._paused_until = self._monotonic() + delay
        self._due[alert.seq] = self._monotonic() + delay
        self._alerts.not_delivered(alert.seq, attempts, answer.error, now + delay)
        _log.warning("alert not delivered", **said, error=answer.error, again_in_seconds=delay)


def delivery_of(alert: Alert) -> str:
    """Returns the alert's name to a receiver, the same in each attempt.

    With the time: a database that is restored or begun anew counts from a lower `seq` again.
    """
    return f"{alert.seq}-{alert.at:.3f}"


def body(alert: Alert, page: str | None) -> dict[str, Any]:
    """Returns the JSON that a receiver gets.

    Slack and Mattermost show `text`, Discord shows `content`. What a run wrote calls nobody there:
    Slack's signs are escaped, and Discord takes no mentions from it.
    """
    url = None
    if page is not None:
        url = page if alert.run_id is None else f"{page}#/runs/{alert.run_id}"
    line = f"Lectern: {alert.message}"
    content = cut(line if url is None else f"{line}\n{url}", _MAX_CONTENT)
    text = content.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return {
        "version": BODY_VERSION,
        "kind": alert.kind,
        "run_id": alert.run_id,
        "name": alert.name,
        "state": alert.state,
        "reason": alert.reason,
        "message": alert.message,
        "step": alert.step,
        "at": alert.at,
        "url": url,
        "text": text,
        "content": content,
        "allowed_mentions": {"parse": []},
    }


def _several(alerts: Sequence[Alert]) -> Alert:
    """Returns what to say of several alerts at once; `alerts` are in order."""
    newest = alerts[-1]
    kinds = Counter(alert.kind for alert in alerts)
    many = f"{len(alerts):,}" if len(alerts) < MAX_ALERTS else f"{MAX_ALERTS:,} or more"
    each = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    message = f"{many} alerts ({each}); the newest: {newest.message}"
    return Alert(newest.seq, 0, newest.at, "several", None, None, None, None, None, message)
