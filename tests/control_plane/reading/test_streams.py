"""Event streams: everything once, in order, also across cuts, rewinds and slow clients."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel

from control_plane.reading.streams import MAX_STREAMS, Changes, RunPosition, list_events, run_events
from control_plane.runs.commands import RunCommands
from control_plane.runs.deletion import delete_run
from lectern_common.errors import InvalidRequest, Overloaded
from lectern_common.files import write_atomic
from lectern_common.json_lines import Position, append_json_line
from lectern_common.run_folder import RunFolder, RunState
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
    """Returns a function that runs a coroutine function with (bench, changes) on an event loop."""
    bench = Bench.of(tmp_path)

    def run(scenario) -> None:
        async def main() -> None:
            changes = Changes()
            changes.start()
            bench.commands = RunCommands(bench.store, bench.clock, changes.notify)
            await scenario(bench, changes)

        asyncio.run(main())

    yield run
    bench.store.close()


def list_of(bench, changes, after=None) -> Listener:
    def shown(runs):
        return [Shown(id=run.id, state=run.state) for run in runs]

    return Listener(list_events(bench.runs, changes, shown, after))


def run_of(bench, changes, run_id, after=None) -> Listener:
    path = RunFolder(bench.roots.runs / run_id).metrics_path
    position = RunPosition.parse(after) if after else RunPosition()
    return Listener(run_events(bench.runs, changes, run_id, path, position))


def with_folder(bench):
    run = bench.commands.create(spec())
    return run, RunFolder.create(bench.roots.runs, run.id, run.run_spec)


def add(folder: RunFolder, *steps: int, loss: float = 1.0) -> None:
    for step in steps:
        append_json_line(folder.metrics_path, {"step": step, "loss/ce": loss})


def test_the_list_streams_what_changes_after_a_revision(live):
    async def scenario(bench, changes):
        first = bench.commands.create(spec())
        revision = bench.runs.newest_revision()
        listener = list_of(bench, changes, revision)
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
    async def scenario(bench, changes):
        runs = [bench.commands.create(spec()) for _ in range(3)]
        listener = list_of(bench, changes, 0)
        first = await listener.next()
        await listener.close()
        bench.commands.request_stop(runs[1].id)
        again = list_of(bench, changes, int(first.id))
        rest = await again.take(2)
        # The stopped one is sent once, as it is, at its newest revision.
        assert [event.data["id"] for event in rest] == [runs[2].id, runs[1].id]
        assert rest[1].data["state"] == "stopped"
        await again.close()

    live(scenario)


def test_the_list_streams_what_is_deleted_between_what_changes(live):
    async def scenario(bench, changes):
        first, second = bench.commands.create(spec()), bench.commands.create(spec())
        listener = list_of(bench, changes, bench.runs.newest_revision())
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
    async def scenario(bench, changes):
        run, folder = with_folder(bench)
        add(folder, 1)
        listener = run_of(bench, changes, run.id)
        bench.commands.request_stop(run.id)
        assert [event.kind for event in await listener.take(3)] == ["state", "state", "metrics"]
        await asyncio.to_thread(delete_run, bench.commands, folder)
        last = await listener.next()
        assert (last.kind, last.data) == ("deleted", {"id": run.id})
        assert await listener.ends()

    live(scenario)


def test_a_list_position_from_a_lost_database_is_rewound(live):
    async def scenario(bench, changes):
        bench.commands.create(spec())
        listener = list_of(bench, changes, 1000)
        event = await listener.next()
        assert (event.kind, event.id) == ("rewind", "1")
        made = bench.commands.create(spec())
        assert (await listener.next()).data["id"] == made.id
        await listener.close()

    live(scenario)


def test_a_run_streams_its_states_and_metrics_from_the_start(live):
    async def scenario(bench, changes):
        run, folder = with_folder(bench)
        add(folder, 0, 1)
        listener = run_of(bench, changes, run.id)
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
    async def scenario(bench, changes):
        run, folder = with_folder(bench)
        bench.commands.claim(run.id, ("cpu",))
        add(folder, *range(5))
        whole = await run_of(bench, changes, run.id).take(7)
        assert len({event.id for event in whole}) == 7
        for cut in range(7):
            rest = run_of(bench, changes, run.id, whole[cut].id)
            assert await rest.take(6 - cut) == whole[cut + 1 :]
            await rest.close()

    live(scenario)


def test_a_run_that_went_back_says_rewind_and_begins_anew(live):
    async def scenario(bench, changes):
        run, folder = with_folder(bench)
        add(folder, *range(6))
        listener = run_of(bench, changes, run.id)
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
        late = run_of(bench, changes, run.id, last.id)
        assert (await late.next()).kind == "rewind"
        assert [event.data["step"] for event in await late.take(8)] == list(range(8))
        # And one that is cut right after the rewind begins at the start again.
        again = run_of(bench, changes, run.id, rewind.id)
        assert [event.data["step"] for event in await again.take(8)] == list(range(8))
        for stream in (listener, late, again):
            await stream.close()

    live(scenario)


def test_streams_end_when_the_control_plane_does(live):
    async def scenario(bench, changes):
        run, _ = with_folder(bench)
        listeners = [list_of(bench, changes, 0), run_of(bench, changes, run.id)]
        for listener in listeners:
            await listener.next()
        assert changes.streams == 2
        endings = [asyncio.create_task(listener.ends()) for listener in listeners]
        await asyncio.sleep(0)
        changes.close()
        assert await asyncio.wait_for(asyncio.gather(*endings), 10) == [True, True]
        assert changes.streams == 0

    live(scenario)


def test_a_client_that_reads_nothing_holds_nothing_up(live):
    """A stream reads the store at its own pace: others, and writers, do not wait for it."""

    async def scenario(bench, changes):
        slow, quick = list_of(bench, changes, 0), list_of(bench, changes, 0)
        runs = [bench.commands.create(spec()) for _ in range(5)]
        assert [event.data["id"] for event in await quick.take(5)] == [run.id for run in runs]
        assert [event.data["id"] for event in await slow.take(5)] == [run.id for run in runs]
        await slow.close()
        await quick.close()

    live(scenario)


def test_streams_are_bounded():
    changes = Changes()
    changes.streams = MAX_STREAMS - 1
    changes.require_room()
    changes.streams = MAX_STREAMS
    with pytest.raises(Overloaded, match="event streams are open"):
        changes.require_room()


def test_a_position_reads_back():
    position = RunPosition(12, Position(345, 0xABCDEF))
    assert RunPosition.parse(str(position)) == position


@pytest.mark.parametrize("text", ["x", "1", "-1-0.00000000", "1-0", "1-x.00000000", "9" * 40])
def test_what_is_no_event_id_is_refused(text):
    with pytest.raises(InvalidRequest):
        RunPosition.parse(text)


def test_a_state_is_a_name_in_the_stream(live):
    async def scenario(bench, changes):
        run = bench.commands.create(spec())
        event = await run_of(bench, changes, run.id).next()
        assert event.data == {
            "at": bench.clock(),
            "state": RunState.QUEUED.value,
            "wanted": "running",
            "reason": None,
            "message": None,
            "attempt": 0,
        }

    live(scenario)
