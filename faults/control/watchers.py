"""python -m faults.control.watchers HOW ADDRESS ...: many clients, in a process of their own.

The first line of standard input has the headers of every request, as a JSON object.

watch ADDRESS NUMBER RUN...   opens NUMBER event streams over the runs and prints {"open": N}. Some
                              read slowly, some lose their connection again and again and go on
                              with the last id. Once a line more comes, which has the last step of
                              each run, it prints what each stream missed.
idle ADDRESS NUMBER           opens NUMBER connections that ask for nothing, and prints how many
                              there are; holds them until its input ends.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import suppress

_SLOW_SECONDS = 0.5
_LOSES_AFTER = 7  # events
_PATIENCE_SECONDS = 60.0


class Watcher:
    """One stream; the list of runs if it watches no single one."""

    def __init__(self, address: str, headers: str, run_id: str | None, number: int) -> None:
        self._host, _, self._port = address.rpartition(":")
        self.run_id = run_id
        self._headers = headers
        self._slow, self._loses = number % 5 == 1, number % 5 == 2
        self._last_id = ""
        self.steps: list[int] = []
        self.revisions: list[int] = []
        self.open = asyncio.Event()

    async def watch(self) -> None:
        """Reads until cancelled; a lost connection is opened again."""
        while True:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                await self._read()
            await asyncio.sleep(0.1)

    async def _read(self) -> None:
        reader, writer = await asyncio.open_connection(self._host, int(self._port), limit=1 << 24)
        path = "/events" if self.run_id is None else f"/runs/{self.run_id}/events"
        again = f"Last-Event-ID: {self._last_id}\r\n" if self._last_id else ""
        try:
            writer.write(
                f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\n{self._headers}{again}\r\n".encode()
            )
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head.split(b"\r\n")[0]:
                await asyncio.sleep(1)
                return
            events = 0
            async for kind, event_id, data in _events(reader):
                self.open.set()
                self._take(kind, event_id, data)
                events += bool(event_id)
                if self._loses and events >= _LOSES_AFTER:
                    return
                if self._slow:
                    await asyncio.sleep(_SLOW_SECONDS)
        finally:
            writer.close()

    def _take(self, kind: str, event_id: str, data: str) -> None:
        self._last_id = event_id or self._last_id
        if kind == "metrics":
            self.steps.append(json.loads(data)["step"])
        elif kind == "run":
            self.revisions.append(int(event_id))

    def problem(self, ends: dict[str, int]) -> str:
        """Returns what was lost or doubled, or ""."""
        if self.run_id is None:
            rising = all(a < b for a, b in zip(self.revisions, self.revisions[1:], strict=False))
            return "" if rising and self.revisions else f"revisions {self.revisions[-5:]}"
        wanted = list(range(ends[self.run_id] + 1))
        if self.steps == wanted:
            return ""
        return f"{len(self.steps)} steps came, the last is {self.steps[-1:]}, of {len(wanted)}"

    def is_through(self, ends: dict[str, int]) -> bool:
        return self.run_id is None or self.steps[-1:] == [ends[self.run_id]]


async def _events(reader: asyncio.StreamReader):  # type: ignore[no-untyped-def]
    """Yields (kind, id, data) of each event, and of each other block, such as a ping."""
    fields: dict[str, str] = {}
    pending = b""
    while True:
        size = int(await reader.readuntil(b"\r\n"), 16)
        if size == 0:
            return
        pending += (await reader.readexactly(size + 2))[:-2]
        *lines, pending = pending.split(b"\n")
        for line in lines:
            name, _, value = line.decode().partition(": ")
            if line:
                fields[name] = value
                continue
            yield fields.get("event", ""), fields.get("id", ""), fields.get("data", "")
            fields = {}


async def watch(address: str, number: int, runs: Sequence[str]) -> None:
    """Does what the module says of `watch`."""
    watched = [*runs, None]
    given = json.loads(sys.stdin.readline())
    headers = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    watchers = [
        Watcher(address, headers, watched[place % len(watched)], place) for place in range(number)
    ]
    tasks = [asyncio.create_task(watcher.watch()) for watcher in watchers]
    with suppress(TimeoutError):
        waits = (watcher.open.wait() for watcher in watchers)
        await asyncio.wait_for(asyncio.gather(*waits), _PATIENCE_SECONDS)
    print(json.dumps({"open": sum(watcher.open.is_set() for watcher in watchers)}), flush=True)
    ends = json.loads(await asyncio.to_thread(sys.stdin.readline))
    loop = asyncio.get_running_loop()
    num_read, until = -1, 0.0
    # As long as something comes: the slow ones take a while to read what the others have read.
    while not all(watcher.is_through(ends) for watcher in watchers):
        if num_read != (num_read := sum(len(watcher.steps) for watcher in watchers)):
            until = loop.time() + _PATIENCE_SECONDS
        elif loop.time() > until:
            break
        await asyncio.sleep(0.1)
    print(json.dumps([watcher.problem(ends) for watcher in watchers]), flush=True)
    await asyncio.gather(*tasks)


async def idle(address: str, number: int) -> None:
    """Does what the module says of `idle`."""
    host, _, port = address.rpartition(":")
    held = []
    for _ in range(number):
        with suppress(OSError, TimeoutError):
            held.append(await asyncio.wait_for(asyncio.open_connection(host, int(port)), 5))
    print(len(held), flush=True)
    await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    how, where, count, *rest = sys.argv[1:]
    asyncio.run(idle(where, int(count)) if how == "idle" else watch(where, int(count), rest))
