"""Wakes tasks that wait for something to change."""

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path


class Wakes:
    """An event that is used up by each wake: take `next()` before looking, wait for it after."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event = asyncio.Event()

    def start(self) -> None:
        """Binds to the running event loop, so that other threads can wake it."""
        self._loop = asyncio.get_running_loop()

    def next(self) -> asyncio.Event:
        """Returns the event of the next wake."""
        return self._event

    def wake(self) -> None:
        """Wakes all that wait. Only from the event loop's thread."""
        self._event.set()
        self._event = asyncio.Event()

    def wake_from_thread(self) -> None:
        """Wakes all that wait, from any thread; does nothing before `start`."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.wake)


async def first_of(events: Iterable[asyncio.Event], seconds: float) -> bool:
    """Returns once one of the events is set, or False after so many seconds."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        done, _ = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waits:
            task.cancel()
    return bool(done)


def signature(path: Path) -> tuple[int, int, int] | None:
    """Returns a value that changes whenever the file does."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
