"""The stream of a log: each line once, over cuts, restarts and rests, within the bounds."""

import asyncio
import threading

import pytest

from control_plane.reading.feed import MAX_STREAMS
from control_plane.reading.logs import feed as log_feed
from control_plane.reading.logs.pieces import next_piece
from control_plane.reading.logs.stream import log_events
from control_plane.runs.keeping.deletion import delete_run
from lectern_common.errors import Overloaded
from lectern_common.logs import MAX_LOG_BYTES, cap_log
from lectern_common.run.folder import RunFolder
from tests.control_plane.reading.test_streams import Listener, counted, live  # noqa: F401


def log_of(bench, feed, run_id: str, position: int = 0) -> Listener:
    folder = RunFolder(bench.roots.runs / run_id)
    return Listener(counted(feed, log_events(feed, folder, position)))


def write(bench, run, text: str) -> None:
    with RunFolder(bench.roots.runs / run.id).log_path.open("a") as file:
        file.write(text)


async def text_of(listener: Listener, wanted: str) -> str:
    """Returns the text of the next events until it is as long as what is wanted; the last id."""
    text = ""
    while len(text) < len(wanted):
        event = await listener.next()
        assert event.kind == "log"
        text += event.data["text"]
    assert text == wanted
    return event.id


def started(bench, *, launched: bool = True):
    """Returns a new run on a bench whose every change wakes the streams, as a plane's do."""
    bench.reconciler._commands = bench.commands
    return bench.started() if launched else bench.create()


def end(bench, run, state: str = "succeeded") -> None:
    bench.processes.last(run.id).say(state, step=20, checkpoint_step=20)
    bench.processes.last(run.id).end(0)
    bench.tick(1)


def test_what_is_there_and_what_is_appended_comes_once(live):  # noqa: F811
    async def scenario(bench, feed) -> None:
        run = started(bench)
        write(bench, run, "one\ntwo\nthr")
        first = log_of(bench, feed, run.id)
        assert await text_of(first, "one\ntwo\n") == "8"
        second = log_of(bench, feed, run.id, 4)
        await text_of(second, "two\n")
        write(bench, run, "ee\n")
        for listener in (first, second):
            assert await text_of(listener, "three\n") == "14"
        write(bench, run, "four\n")
        for listener in (first, second):
            await text_of(listener, "four\n")
            await listener.close()

    live(scenario)


def test_a_run_that_has_not_started_has_an_empty_log_that_may_grow(live):  # noqa: F811
    async def scenario(bench, feed) -> None:
        run = started(bench, launched=False)
        listener = log_of(bench, feed, run.id)
        waiting = asyncio.create_task(listener.next())
        await asyncio.sleep(0.05)
        bench.tick()
        write(bench, run, "hello\n")
        assert (await waiting).data == {"text": "hello\n"}
        await listener.close()

    live(scenario)


def test_the_end_of_a_run_is_told_after_its_last_word_and_a_resume_goes_on(live):  # noqa: F811
    async def scenario(bench, feed) -> None:
        run = started(bench)
        write(bench, run, "one\n")
        listener = log_of(bench, feed, run.id)
        await text_of(listener, "one\n")
        write(bench, run, "two\nno line break")
        bench.commands.request_stop(run.id)
        end(bench, run, "stopped")
        await text_of(listener, "two\nno line break")
        rests = await listener.next()
        assert (rests.kind, rests.id) == ("rests", "21")
        assert rests.data == {"state": "stopped", "reason": "stopped"}
        bench.commands.request_resume(run.id)
        bench.tick(1)
        write(bench, run, " at first\nthree\n")
        assert await text_of(listener, " at first\nthree\n") == "37"
        bench.processes.last(run.id).say("running", step=5)
        bench.tick(1)
        end(bench, run)
        assert (await listener.next()).data["state"] == "succeeded"
        late = log_of(bench, feed, run.id, 37)
        assert (await late.next()).kind == "rests"
        await listener.close()
        await late.close()

    live(scenario)


def test_a_run_that_resumes_by_itself_does_not_rest(live):  # noqa: F811
    async def scenario(bench, feed) -> None:
        run = started(bench)
        listener = log_of(bench, feed, run.id)
        bench.processes.last(run.id).end(1)
        bench.tick(1)
        assert bench.runs.get(run.id).state == "interrupted"
        waiting = asyncio.create_task(listener.next())
        await asyncio.sleep(1)
        write(bench, run, "again\n")
        event = await waiting
        assert (event.kind, event.data) == ("log", {"text": "again\n"})
        await listener.close()

    live(scenario)


def test_a_cut_log_goes_on_and_says_what_a_slow_reader_missed(live):  # noqa: F811
    async def scenario(bench, feed) -> None:
        run = started(bench)
        path = RunFolder(bench.roots.runs / run.id).log_path
        line = b"%s\n" % (b"=" * 65_535)
        with path.open("ab", buffering=0) as writer:
            for _ in range(MAX_LOG_BYTES // len(line)):
                writer.write(line)
            listener = log_of(bench, feed, run.id, MAX_LOG_BYTES)
            writer.write(b"before\n")
            await text_of(listener, "before\n")
            assert cap_log(path) > 0
            writer.write(b"after\n")
        last = await text_of(listener, "after\n")
        assert int(last) == MAX_LOG_BYTES + len("before\nafter\n")
        slow = log_of(bench, feed, run.id, 20 << 20)
        event = await slow.next()
        assert event.kind == "cut"
        assert int(event.id) == (20 << 20) + event.data["bytes"]
        await listener.close()
        await slow.close()

    live(scenario)


def test_a_deleted_run_ends_its_stream(live):  # noqa: F811
    async def scenario(bench, feed) -> None:
        run = started(bench)
        write(bench, run, "one\n")
        end(bench, run)
        listener = log_of(bench, feed, run.id)
        assert [event.kind for event in await listener.take(2)] == ["log", "rests"]
        delete_run(bench.commands, RunFolder(bench.roots.runs / run.id))
        event = await listener.next()
        assert (event.kind, event.data) == ("deleted", {"id": run.id})
        assert await listener.ends()

    live(scenario)


def test_a_stop_of_the_control_plane_ends_the_stream_at_once(live):  # noqa: F811
    async def scenario(bench, feed) -> None:
        run = started(bench)
        listener = log_of(bench, feed, run.id)
        ending = asyncio.create_task(listener.ends())
        await asyncio.sleep(0.05)
        feed.close()
        assert await asyncio.wait_for(ending, 10)

    live(scenario)


def test_log_streams_count_among_all_streams(live):  # noqa: F811
    async def scenario(bench, feed) -> None:
        run = started(bench)
        write(bench, run, "one\n")
        feed.streams = MAX_STREAMS - 1
        listener = log_of(bench, feed, run.id)
        await listener.next()
        with pytest.raises(Overloaded):
            await log_of(bench, feed, run.id).next()
        await listener.close()
        assert feed.streams == MAX_STREAMS - 1

    live(scenario)


def test_many_streams_read_and_encode_a_log_once(live, monkeypatch):  # noqa: F811
    reads = []

    def counting(*arguments, **named):
        reads.append(arguments)
        return next_piece(*arguments, **named)

    monkeypatch.setattr(log_feed, "next_piece", counting)

    async def scenario(bench, feed) -> None:
        run = started(bench)
        write(bench, run, "one\n")
        listeners = [log_of(bench, feed, run.id) for _ in range(50)]
        for listener in listeners:
            await text_of(listener, "one\n")
        waiting = [asyncio.create_task(listener.next()) for listener in listeners]
        await asyncio.sleep(0.7)
        reads.clear()
        write(bench, run, "two\n")
        for task in waiting:
            assert (await task).data == {"text": "two\n"}
        assert len(reads) <= 4
        for listener in listeners:
            await listener.close()

    live(scenario)


def test_what_is_kept_is_bounded_and_a_slow_reader_reads_the_file(live, monkeypatch):  # noqa: F811
    monkeypatch.setattr(log_feed, "MAX_KEPT_BYTES", 3_000)

    async def scenario(bench, feed) -> None:
        run = started(bench)
        write(bench, run, "0\n")
        fast, slow = log_of(bench, feed, run.id), log_of(bench, feed, run.id)
        await text_of(fast, "0\n")
        await text_of(slow, "0\n")
        waiting = asyncio.create_task(fast.next())
        await asyncio.sleep(0.2)  # it has reached the end
        for number in range(1, 6):
            write(bench, run, f"{number}" * 1_500 + "\n")
            assert (await waiting).data["text"] == f"{number}" * 1_500 + "\n"
            waiting = asyncio.create_task(fast.next())
        waiting.cancel()
        with feed.of_run(run.id, RunFolder(bench.roots.runs / run.id).metrics_path) as shared:
            assert len(shared.log(None)._pieces) == 1
        await text_of(slow, "".join(f"{number}" * 1_500 + "\n" for number in range(1, 6)))
        await fast.close()
        await slow.close()

    live(scenario)


def test_a_disk_that_hangs_under_a_log_keeps_the_event_loop_and_other_work_free(
    live,  # noqa: F811
    monkeypatch,
):
    hangs, hung = threading.Event(), []

    def hanging(path):
        hung.append(threading.current_thread().name)
        hangs.wait(30)
        return None

    async def scenario(bench, feed) -> None:
        run = started(bench)
        write(bench, run, "one\n")
        listener = log_of(bench, feed, run.id)
        await text_of(listener, "one\n")
        monkeypatch.setattr(log_feed, "signature", hanging)
        waiting = asyncio.create_task(listener.next())
        while not hung:
            await asyncio.sleep(0.01)
        assert await asyncio.to_thread(lambda: 1) == 1
        assert all(name.startswith("files") for name in hung)
        assert not waiting.done()
        hangs.set()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await listener.close()

    live(scenario)
