"""Pieces of a log as events: whole lines, inert, each byte once, also when the log is cut."""

import json
import random
from pathlib import Path

import pytest

from control_plane.reading.logs.pieces import MAX_PIECE_BYTES, next_piece, position_before
from lectern_common.logs import KEPT_FIRST_BYTES, KEPT_LAST_BYTES, MAX_LOG_BYTES, cap_log


def events_of(data: bytes) -> list[tuple[str, dict, int]]:
    found = []
    for block in data.decode().split("\n\n")[:-1]:
        lines = dict(line.split(": ", 1) for line in block.splitlines())
        found.append((lines["event"], json.loads(lines["data"]), int(lines["id"])))
    return found


def read(path: Path, position: int, **how) -> tuple[list[tuple[str, dict, int]], int]:
    """Returns all events from a position on, and the position after them."""
    events = []
    while (piece := next_piece(path, position, **how)) is not None:
        assert piece.begin == position
        found = events_of(piece.events)
        assert found[-1][2] == piece.end
        events += found
        position = piece.end
    return events, position


def text_of(events) -> str:
    return "".join(data["text"] for kind, data, _ in events if kind == "log")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "trainer.log"


def test_only_lines_that_have_ended_are_told_until_all_is_asked_for(log):
    assert next_piece(log, 0) is None
    log.write_bytes(b"one\ntwo\nthr")
    events, position = read(log, 0)
    assert (events, position) == ([("log", {"text": "one\ntwo\n"}, 8)], 8)
    assert read(log, 8) == ([], 8)
    assert read(log, 8, whole=True) == ([("log", {"text": "thr"}, 11)], 11)
    with log.open("ab") as file:
        file.write(b"ee\nfour\n")
    assert read(log, 8)[0] == [("log", {"text": "three\nfour\n"}, 19)]
    assert read(log, 11)[0] == [("log", {"text": "ee\nfour\n"}, 19)]
    assert read(log, 0, stop=4)[0] == [("log", {"text": "one\n"}, 4)]


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (b"\x1b[31mred\x1b[0m\n", "red\n"),
        (b"10%\r50%\r100%\n", "100%\n"),
        (b"bad \xff utf-8\n", "bad \N{REPLACEMENT CHARACTER} utf-8\n"),
        (b"<b>\x07\n\n\ttab\n", "<b>\N{REPLACEMENT CHARACTER}\n\n\ttab\n"),
        (b"id: 3\ndata: x\n\nevent: y\n", "id: 3\ndata: x\n\nevent: y\n"),
        ("\u2028\u202eright\n".encode(), "\N{REPLACEMENT CHARACTER}" * 2 + "right\n"),
    ],
)
def test_text_is_inert(log, written, shown):
    log.write_bytes(written)
    assert text_of(read(log, 0)[0]) == shown


def test_a_line_without_an_end_comes_in_pieces_that_split_no_character(log):
    written = "\u20ac" * 100_000
    log.write_text(written)
    events, position = read(log, 0)
    assert position == 3 * (MAX_PIECE_BYTES // 3) * (300_000 // MAX_PIECE_BYTES)
    assert "\N{REPLACEMENT CHARACTER}" not in text_of(events)
    assert all(len(data["text"]) < 2_100 and " [cut] " in data["text"] for _, data, _ in events)
    assert read(log, position, whole=True)[1] == 300_000


def test_a_log_that_is_another_one_is_told_from_its_start(log):
    log.write_text("a much longer log\n")
    log.write_text("new\n")
    assert read(log, 18)[0] == [("rewind", {}, 0), ("log", {"text": "new\n"}, 4)]
    log.unlink()
    assert next_piece(log, 4) is None  # it may be put back


def test_a_reader_goes_on_over_cuts_without_loss_or_doubles(log):
    """With the real limits, several times, with readers that are close behind and far behind."""
    rng = random.Random(3)  # noqa: S311
    written, number = bytearray(), 0
    near, far = 0, 0
    seen: list[int] = []
    with log.open("ab", buffering=0) as writer:
        while len(written) < 2 * MAX_LOG_BYTES:
            lines = bytearray()
            while len(lines) < 6 << 20:
                lines += b"%08d %s\n" % (number, b"-" * rng.randint(20_000, 30_000))
                number += 1
            writer.write(lines)
            written += lines
            if near == 0:
                near = len(written)
                far = near
            events, near = read_numbers(log, near)
            seen += events
            if cap_log(log):
                assert log.stat().st_size < KEPT_FIRST_BYTES + KEPT_LAST_BYTES + 200_000
    first = int(bytes(written[far:]).partition(b" ")[0])
    assert near == len(written)
    assert seen == list(range(first, number))
    piece = next_piece(log, far + (20 << 20))
    assert piece is not None
    kind, data, position = events_of(piece.events)[0]
    assert (kind, position) == ("cut", far + (20 << 20) + data["bytes"])
    assert written[position - 1 : position] == b"\n"
    events, end = read_numbers(log, position)
    assert end == len(written)
    assert events == list(range(int(bytes(written[position : position + 8])), number))


def read_numbers(log: Path, position: int) -> tuple[list[int], int]:
    numbers = []
    while (piece := next_piece(log, position)) is not None:
        for kind, data, _ in events_of(piece.events):
            assert kind == "log"
            numbers += [int(line[:8]) for line in data["text"].splitlines()]
        position = piece.end
    return numbers, position


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        (0, ""),
        (1, "c\n"),
        (2, "bb\nc\n"),
        (3, "\nbb\nc\n"),
        (4, "a\n\nbb\nc\n"),
        (99, "a\n\nbb\nc\n"),
    ],
)
def test_a_stream_may_begin_some_lines_before_the_end(log, lines, shown):
    log.write_bytes(b"a\n\nbb\nc\nunfinished")
    assert text_of(read(log, position_before(log, lines))[0]) == shown


def test_it_begins_no_further_back_than_a_tail_goes_and_with_a_whole_line(log):
    log.write_bytes(b"".join(b"%06d\n" % number for number in range(100_000)))
    position = position_before(log, 90_000)
    assert position % 7 == 0
    assert 700_000 - 256 * 1024 <= position < 700_000 - 256 * 1024 + 7
    assert position_before(log.with_name("none"), 5) == 0
