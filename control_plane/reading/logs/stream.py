"""Server-sent events of the text that is appended to a run's log."""

import asyncio
from collections.abc import AsyncGenerator

from sqlalchemy.exc import SQLAlchemyError

from control_plane.reading.events import event
from control_plane.reading.feed import RETRY_SECONDS, Feed
from control_plane.reading.streams import PING, PING_SECONDS, RETRY
from control_plane.reading.wakes import first_of
from control_plane.runs.record import Run
from lectern_common.errors import CorruptData, NotFound
from lectern_common.logs import get_logger
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RESTING

_log = get_logger()


async def log_events(feed: Feed, folder: RunFolder, position: int) -> AsyncGenerator[bytes, None]:
    """Yields a run's log from a position on, each event with the position after it as its id.

    Besides the events of `next_piece` there are `rests`, when the run has come to rest and its log
    is told to the end (it may be resumed, and more text follow), and `deleted`, the last one: the
    run is gone.
    """
    # The id is that of no event: a client that is cut off before the first one has it, too.
    yield RETRY + f"id: {position}\n\n".encode()
    with feed.of_run(folder.run_id, folder.metrics_path) as states:
        log = states.log(folder.log_path)
        run: Run | None = None
        told: object = None  # the rest that the client was told of
        turn = asyncio.Event()
        turn.set()
        while not feed.closed:
            try:
                if turn.is_set():
                    turn = states.turns.next()
                    run = await asyncio.to_thread(_found, feed, folder.run_id)
                news = log.news.next()
                rest = _rest(run)
                piece = await log.after(position)
                if piece is None and rest != told:
                    piece = await log.next_piece(position, whole=True)
            except (SQLAlchemyError, CorruptData) as error:
                _log.error("log not read", run=folder.run_id, error=str(error))
                turn.set()
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if piece is not None:
                position = piece.end
                yield piece.events
            elif run is None:
                yield event("deleted", {"id": folder.run_id}, str(position))
                return
            elif rest != told:
                told = rest
                yield event("rests", {"state": run.state, "reason": run.reason}, str(position))
            elif not await first_of((news, turn), PING_SECONDS):
                yield PING


def _rest(run: Run | None) -> object:
    """Returns what is different for each time that a run rests; None while it does not."""
    rests = run is None or (run.state in RESTING and not run.resumes_itself)
    return (run and run.attempt, run and run.since) if rests else None


def _found(feed: Feed, run_id: str) -> Run | None:
    try:
        return feed.runs.get(run_id)
    except NotFound:
        return None
