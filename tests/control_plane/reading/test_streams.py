"""Event streams: everything once, in order, also across cuts, rewinds and slow clients."""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import BaseModel

from control_plane.reading import feed as feed_module
from control_plane.reading.feed import MAX_JOINED, MAX_STREAMS, Feed
from control_plane.reading.streams import RunPosition, list_events, run_events
from control_plane.reading.wakes import Wakes, set_within
from control_plane.runs.commands import RunCommands
from control_plane.runs.keeping.deletion import delete_run
from control_plane.views.alerts import alert_view
from lectern_common.errors import InvalidRequest, Overloaded
from lectern_common.files import write_atomic
from lectern_common.json_lines import Position, append_json_line, read_after
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState
from tests.control_plane.conftest import Bench, spec


@dataclass(frozen=True)
class Event:
    kind: str
    data: Any
    id: str


class Listener:
    """Reads events off a stream, as a client would."""

    def __init__(self, stream: AsyncIterator[bytes]) -> None:
        self._stream = stream
        self._events: list[Event] = []

    async def next(self) -> Event:
        while not self._events:
            chunk = await asyncio.wait_for(anext(self._stream), 10)
            for block in chunk.decode().split("\n\n"):
                lines = dict(line.split(": ", 1) for line in block.splitlines() if line[0] != ":")
                if "event" in lines:
                    event = Event(lines["event"], json.loads(lines["data"]), lines["id"])
                    self._events.append(event)
        return self._events.pop(0)

    async def take(self, count: int) -> list[Event]:
        return [await self.next() for _ in range(count)]

    async def ends(self) -> bool:
        """Returns whether the stream ends without another event."""
        async for _ in self._stream:
            pass
        return not self._events

    async def close(self) -> None:
        assert isinstance(self._stream, AsyncGenerator)
        await self._stream.aclose()


class Shown(BaseModel):
    id: str
    state: str


@pytest.fixture
def live(tmp_path):
    """Returns a function that runs a coroutine function with (bench, feed) on an event loop."""
    bench = Bench.of(tmp_path)

    def run(scenario) -> None:
        async def main() -> None:
            changes = Wakes()
            changes.start()
            bench.commands = RunCommands(bench.store, bench.clock, changes.wake_from_thread)
            feed = Feed(bench.runs, lambda run: Shown(id=run.id, state=run.state), changes)
            following = asyncio.create_task(feed.follow())
            await scenario(bench, feed)
            feed.close()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

        asyncio.run(main())

    yield run
    bench.store.close()


async def counted(feed, events) -> AsyncGenerator[bytes]:
    """Yields the events of a stream that counts as open, as a response's does."""
    try:
        with feed.opened():
            async for data in events:
                yield data
    finally:
        await events.aclose()


def list_of(bench, feed, after=None) -> Listener:
    newest = bench.runs.newest_revision()
    return Listener(counted(feed, list_events(feed, newest, after)))


def run_of(bench, feed, run_id, after=None) -> Listener:
    path = RunFolder(bench.roots.runs / run_id).metrics_path
    position = RunPosition.parse(after) if after else RunPosition()
    return Listener(counted(feed, run_events(feed, run_id, path, position)))


def with_folder(bench):
    run = bench.commands.create(spec())
    return run, RunFolder.create(bench.roots.runs, run.id, run.run_spec)


def add(folder: RunFolder, *steps: int, loss: float = 1.0) -> None:
    for step in steps:
        append_json_line(folder.metrics_path, {"step": step, "loss/ce": loss})


def test_the_list_streams_what_changes_after_a_revision(live):
    async def scenario(bench, feed):
        first = bench.commands.create(spec())
        revision = bench.runs.newest_revision()
        listener = list_of(bench, feed, revision)
        waiting = asyncio.create_task(listener.next())
        await asyncio.sleep(0)
        second = bench.commands.create(spec("other"))
        event = await waiting
        assert (event.kind, event.data) == ("run", {"id": second.id, "state": "queued"})
        bench.commands.request_stop(first.id)
        assert (await listener.next()).data == {"id": first.id, "state": "stopped"}
        await listener.close()

    live(scenario)


def test_the_list_continues_after_the_last_event_without_gap_or_duplicate(live):
    async def scenario(bench, feed):
        runs = [bench.commands.create(spec()) for _ in range(3)]
        listener = list_of(bench, feed, 0)
        first = await listener.next()
        await listener.close()
        bench.commands.request_stop(runs[1].id)
        again = list_of(bench, feed, int(first.id))
        rest = await again.take(2)
        # The stopped one is sent once, as it is, at its newest revision.
        assert [event.data["id"] for event in rest] == [runs[2].id, runs[1].id]
        assert rest[1].data["state"] == "stopped"
        await again.close()

    live(scenario)


def test_the_list_streams_what_is_deleted_between_what_changes(live):
    async def scenario(bench, feed):
        first, second = bench.commands.create(spec()), bench.commands.create(spec())
        listener = list_of(bench, feed, bench.runs.newest_revision())
        bench.commands.request_stop(first.id)
        bench.commands.delete(first.id, lambda: None)
        bench.commands.request_stop(second.id)
        assert [(event.kind, event.data["id"]) for event in await listener.take(2)] == [
            ("deleted", first.id),
            ("run", second.id),
        ]
        await listener.close()

    live(scenario)


def test_the_stream_of_a_run_ends_with_its_deletion(live):
    async def scenario(bench, feed):
        run, folder = with_folder(bench)
        add(folder, 1)
        listener = run_of(bench, feed, run.id)
        bench.commands.request_stop(run.id)
        assert [event.kind for event in await listener.take(3)] == ["state", "state", "metrics"]
        await asyncio.to_thread(delete_run, bench.commands, folder)
        last = await listener.next()
        assert (last.kind, last.data) == ("deleted", {"id": run.id})
        assert await listener.ends()

    live(scenario)


def test_a_list_position_from_a_lost_database_is_rewound(live):
    async def scenario(bench, feed):
        bench.commands.create(spec())
        listener = list_of(bench, feed, 1000)
        event = await listener.next()
        assert (event.kind, event.id) == ("rewind", "1")
        made = bench.commands.create(spec())
        assert (await listener.next()).data["id"] == made.id
        await listener.close()

    live(scenario)


def test_a_run_streams_its_states_and_metrics_from_the_start(live):
    async def scenario(bench, feed):
        run, folder = with_folder(bench)
        add(folder, 0, 1)
        listener = run_of(bench, feed, run.id)
        events = await listener.take(3)
        assert [event.kind for event in events] == ["state", "metrics", "metrics"]
        assert [event.data["step"] for event in events[1:]] == [0, 1]
        bench.commands.claim(run.id, ("cpu",))
        assert (await listener.next()).data["state"] == "starting"
        add(folder, 2)
        assert (await listener.next()).data == {"step": 2, "loss/ce": 1.0}
        await listener.close()

    live(scenario)


def test_a_run_s_stream_cut_anywhere_goes_on_without_gap_or_double(live):
    async def scenario(bench, feed):
        run, folder = with_folder(bench)
        bench.commands.claim(run.id, ("cpu",))
        add(folder, *range(5))
        whole = await run_of(bench, feed, run.id).take(7)
        assert len({event.id for event in whole}) == 7
        for cut in range(7):
            rest = run_of(bench, feed, run.id, whole[cut].id)
            assert await rest.take(6 - cut) == whole[cut + 1 :]
            await rest.close()

    live(scenario)


def test_a_run_that_went_back_says_rewind_and_begins_anew(live):
    async def scenario(bench, feed):
        run, folder = with_folder(bench)
        add(folder, *range(6))
        listener = run_of(bench, feed, run.id)
        last = (await listener.take(7))[-1]
        kept = b"".join(folder.metrics_path.read_bytes().splitlines(keepends=True)[:3])
        write_atomic(folder.metrics_path, kept)
        add(folder, 3, loss=2.0)
        rewind, *records = await listener.take(5)
        assert rewind.kind == "rewind"
        assert [event.data["step"] for event in records] == [0, 1, 2, 3]
        add(folder, 4, 5, 6, 7, loss=2.0)
        assert [event.data["step"] for event in await listener.take(4)] == [4, 5, 6, 7]
        # A client that was away meanwhile is told as well, though the file is longer by now.
        late = run_of(bench, feed, run.id, last.id)
        assert (await late.next()).kind == "rewind"
        assert [event.data["step"] for event in await late.take(8)] == list(range(8))
        # And one that is cut right after the rewind begins at the start again.
        again = run_of(bench, feed, run.id, rewind.id)
        assert [event.data["step"] for event in await again.take(8)] == list(range(8))
        for stream in (listener, late, again):
            await stream.close()

    live(scenario)


def test_streams_end_when_the_control_plane_does(live):
    async def scenario(bench, feed):
        run, _ = with_folder(bench)
        listeners = [list_of(bench, feed, 0), run_of(bench, feed, run.id)]
        for listener in listeners:
            await listener.next()
        assert feed.streams == 2
        endings = [asyncio.create_task(listener.ends()) for listener in listeners]
        await asyncio.sleep(0)
        feed.close()
        assert await asyncio.wait_for(asyncio.gather(*endings), 10) == [True, True]
        assert feed.streams == 0

    live(scenario)


def test_a_client_that_reads_nothing_holds_nothing_up(live):
    """A stream reads the store at its own pace: others, and writers, do not wait for it."""

    async def scenario(bench, feed):
        slow, quick = list_of(bench, feed, 0), list_of(bench, feed, 0)
        runs = [bench.commands.create(spec()) for _ in range(5)]
        assert [event.data["id"] for event in await quick.take(5)] == [run.id for run in runs]
        assert [event.data["id"] for event in await slow.take(5)] == [run.id for run in runs]
        await slow.close()
        await quick.close()

    live(scenario)


def test_streams_are_bounded(live):
    async def scenario(bench, feed):
        feed.streams = MAX_STREAMS - 1
        with feed.opened(), pytest.raises(Overloaded, match="event streams are open"):
            feed.opened().__enter__()
        assert feed.streams == MAX_STREAMS - 1
        feed.close()
        with pytest.raises(Overloaded, match="is stopping"):
            feed.opened().__enter__()

    live(scenario)


def test_a_change_is_read_and_encoded_once_for_all_streams(live):
    async def scenario(bench, feed):
        encoded: list[str] = []
        view = feed._view

        def counting(run):
            encoded.append(run.id)
            return view(run)

        feed._view = counting
        after = bench.runs.newest_revision()
        streams = [counted(feed, list_events(feed, after, after)) for _ in range(20)]
        for stream in streams:
            assert (await anext(stream)).startswith(b"retry")
        waiting = [asyncio.create_task(anext(stream)) for stream in streams]
        await asyncio.sleep(0.5)  # the feed follows by now
        run = bench.commands.create(spec())
        sent = await asyncio.wait_for(asyncio.gather(*waiting), 60)
        assert encoded == [run.id]
        assert len({id(data) for data in sent}) == 1
        for stream in streams:
            await stream.aclose()

    live(scenario)


def test_a_slow_client_of_the_list_catches_up_from_the_store(live, monkeypatch):
    monkeypatch.setattr("control_plane.reading.feed.MAX_KEPT_BYTES", 300)

    async def scenario(bench, feed):
        slow, quick = list_of(bench, feed, 0), list_of(bench, feed, 0)
        first = bench.commands.create(spec())
        for listener in (slow, quick):
            assert (await listener.next()).data["id"] == first.id
        runs = []
        for _ in range(8):
            runs.append(bench.commands.create(spec()))
            assert (await quick.next()).data["id"] == runs[-1].id
        assert len(feed._kept) < 8
        events = await slow.take(8)
        assert [event.data["id"] for event in events] == [run.id for run in runs]
        last = bench.commands.create(spec())
        for listener in (slow, quick):
            assert (await listener.next()).data["id"] == last.id
            await listener.close()

    live(scenario)


def test_a_row_that_cannot_be_shown_silences_no_other(live):
    async def scenario(bench, feed):
        broken = bench.commands.create(spec("broken"))
        view = feed._view

        def shown(run):
            if run.id == broken.id:
                raise ValueError("no such state")
            return view(run)

        feed._view = shown
        listener = list_of(bench, feed, 0)
        for _ in range(3):
            made = bench.commands.create(spec())
            assert (await listener.next()).data["id"] == made.id
            bench.commands.request_stop(made.id)
            assert (await listener.next()).data["state"] == "stopped"
        await listener.close()

    live(scenario)


def test_the_streams_of_a_run_read_its_metrics_once(live, monkeypatch):
    reads: list[int] = []

    def counting(path, position, *rest):
        reads.append(position.offset)
        return read_after(path, position, *rest)

    for module in ("streams", "run_feed"):
        monkeypatch.setattr(f"control_plane.reading.{module}.read_after", counting)

    async def scenario(bench, feed):
        run, folder = with_folder(bench)
        add(folder, 0)
        listeners = [run_of(bench, feed, run.id) for _ in range(10)]
        for listener in listeners:
            assert [event.kind for event in await listener.take(2)] == ["state", "metrics"]
        first = asyncio.create_task(listeners[0].next())
        await asyncio.sleep(1.5)  # every listener has found the feed's place by then
        for step in range(1, 6):
            add(folder, step)
            assert (await first).data["step"] == step
            first = asyncio.create_task(listeners[0].next())
        before = len(reads)
        for listener in listeners[1:]:
            assert [event.data["step"] for event in await listener.take(5)] == [1, 2, 3, 4, 5]
        assert len(reads) - before <= len(listeners)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        for listener in listeners:
            await listener.close()
        assert not feed._run_feeds

    live(scenario)


def test_a_slow_client_of_a_run_reads_on_in_the_file(live, monkeypatch):
    monkeypatch.setattr("control_plane.reading.run_feed.MAX_KEPT_BYTES", 400)

    async def scenario(bench, feed):
        run, folder = with_folder(bench)
        add(folder, 0)
        slow, quick = run_of(bench, feed, run.id), run_of(bench, feed, run.id)
        for listener in (slow, quick):
            await listener.take(2)
        for step in range(1, 31):
            add(folder, step)
            if step % 10 == 0:
                events = await quick.take(10)
                assert [event.data["step"] for event in events] == [*range(step - 9, step + 1)]
        bench.commands.claim(run.id, ("cpu",))
        seen = await slow.take(31)
        assert [event.data["step"] for event in seen if event.kind == "metrics"] == [*range(1, 31)]
        assert [event.data["state"] for event in seen if event.kind == "state"] == ["starting"]
        assert len({event.id for event in seen}) == 31
        for listener in (slow, quick):
            await listener.close()

    live(scenario)


def test_a_database_that_cannot_be_read_for_a_while_ends_no_stream(live, monkeypatch):
    monkeypatch.setattr("control_plane.reading.feed.RETRY_SECONDS", 0.05)

    async def scenario(bench, feed):
        listener = list_of(bench, feed, 0)
        made = bench.commands.create(spec())
        assert (await listener.next()).data["id"] == made.id
        changed_since, failures = bench.runs.changed_since, iter(range(3))

        def failing(*args):
            if next(failures, None) is not None:
                raise sa.exc.OperationalError("select", {}, Exception("database is locked"))
            return changed_since(*args)

        bench.runs.changed_since = failing
        bench.commands.request_stop(made.id)
        assert (await listener.next()).data["state"] == "stopped"
        await listener.close()

    live(scenario)


def test_a_position_reads_back():
    position = RunPosition(12, Position(345, 0xABCDEF))
    assert RunPosition.parse(str(position)) == position


@pytest.mark.parametrize("text", ["x", "1", "-1-0.00000000", "1-0", "1-x.00000000", "9" * 40])
def test_what_is_no_event_id_is_refused(text):
    with pytest.raises(InvalidRequest):
        RunPosition.parse(text)


def test_a_state_is_a_name_in_the_stream(live):
    async def scenario(bench, feed):
        run = bench.commands.create(spec())
        event = await run_of(bench, feed, run.id).next()
        assert event.data == {
            "at": bench.clock(),
            "state": RunState.QUEUED.value,
            "wanted": "running",
            "reason": None,
            "message": None,
            "attempt": 0,
            "by": None,
        }

    live(scenario)


def test_a_wait_that_is_cancelled_as_its_event_comes_ends():
    """A loop around one that swallowed it would go on for a client that is gone."""

    async def scenario():
        event = asyncio.Event()

        async def loop():
            while True:
                await set_within(event, 60)
                event.clear()

        task = asyncio.create_task(loop())
        await asyncio.sleep(0)
        event.set()
        await asyncio.sleep(0)  # the event has come, and the loop has not yet seen it
        task.cancel()
        await asyncio.wait([task], timeout=10)
        assert task.cancelled()

    asyncio.run(scenario())


def test_a_disk_that_hangs_keeps_neither_the_event_loop_nor_other_work_waiting(live, monkeypatch):
    hangs, hung = threading.Event(), []

    def signature(path):
        hung.append(threading.current_thread().name)
        hangs.wait(30)
        return None

    async def scenario(bench, feed):
        monkeypatch.setattr("control_plane.reading.run_feed.signature", signature)
        runs = [with_folder(bench)[0] for _ in range(2)]
        listeners = [run_of(bench, feed, run.id) for run in runs]
        for listener in listeners:
            await listener.take(1)
        waits = [asyncio.create_task(listener.next()) for listener in listeners]
        while len(hung) < 2:
            await asyncio.sleep(0.01)
        assert all(name.startswith("files") for name in hung)
        assert await asyncio.to_thread(lambda: bench.runs.get(runs[0].id).id) == runs[0].id
        hangs.set()
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        for listener in listeners:
            await listener.close()

    live(scenario)


def test_answers_that_are_kept_for_clients_at_one_place_are_few(live, monkeypatch):
    async def scenario(bench, feed):
        listener = list_of(bench, feed)
        first = asyncio.create_task(listener.next())
        await asyncio.sleep(0.5)
        for number in range(30):
            bench.commands.create(spec(f"run-{number}"))
        await first
        await asyncio.sleep(0.5)
        for revision in range(feed._begin, feed._end):
            assert feed.after(revision) is not None
        assert 0 < len(feed._joined) <= MAX_JOINED
        await listener.close()

    live(scenario)


# ---- alerts --------------------------------------------------------------------------------------


def test_alerts_come_once_in_the_order_of_changes_also_after_a_cut(live):
    async def scenario(bench, feed):
        listener = list_of(bench, feed)
        run = bench.commands.create(spec())
        await listener.take(1)
        bench.commands.claim(run.id, ("cpu",))
        bench.commands.ended(run.id, RunState.FAILED, "oom", "no memory")
        events = [await listener.next()]
        while events[-1].kind != "alert":
            events.append(await listener.next())
        alert = events[-1]
        assert (alert.data["kind"], alert.data["run_id"]) == ("failed", run.id)
        assert alert.data["message"].endswith("oom: no memory")
        assert int(alert.id) == bench.runs.newest_revision()
        await listener.close()

        # Another client was cut off right before the alert; a third one right after it.
        before = list_of(bench, feed, after=int(alert.id) - 1)
        assert await before.next() == alert
        after = list_of(bench, feed, after=int(alert.id))
        other = bench.commands.create(spec("other"))
        for each in (before, after):
            event = await each.next()
            assert (event.kind, event.data["id"]) == ("run", other.id)
            await each.close()

    live(scenario)


def test_an_alert_is_encoded_once_for_all_streams(live, monkeypatch):
    encoded = []

    def counted_view(alert):
        encoded.append(alert.seq)
        return alert_view(alert)

    monkeypatch.setattr(feed_module, "alert_view", counted_view)

    async def scenario(bench, feed):
        listeners = [list_of(bench, feed) for _ in range(5)]
        run = bench.commands.create(spec())
        for each in listeners:
            await each.next()
        while feed.after(bench.runs.newest_revision()) is None:  # it begins to keep what changes
            await asyncio.sleep(0.01)
        bench.commands.claim(run.id, ("cpu",))
        bench.commands.ended(run.id, RunState.SUCCEEDED, None, None)
        for each in listeners:
            while (await each.next()).kind != "alert":
                pass
            await each.close()
        assert len(encoded) == 1

    live(scenario)
