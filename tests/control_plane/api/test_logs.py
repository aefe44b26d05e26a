"""The routes of a log: the whole of it, ranges of its bytes, and the stream over REST."""

import json
import os

import pytest

from control_plane.reading.logs.whole import BLOCK_BYTES, Unsatisfiable, WholeLog, range_of
from lectern_common.errors import CorruptData
from lectern_common.logs import MAX_LOG_BYTES, cap_log
from tests.control_plane.api.test_routes import create, problem_of, started, stopped

CONTENT = b"one\n\x1b[31m<b>two</b>\xff\n" + bytes(range(256)) * 3_000


@pytest.fixture
def log(client, processes):
    """Returns the address of a log, and the file."""
    run = started(client, processes)
    path = processes.last(run["id"]).folder.log_path
    path.write_bytes(CONTENT)
    return f"/runs/{run['id']}/log", path


def test_the_whole_log_is_sent_byte_for_byte_as_inert_text(client, log):
    url, _ = log
    response = client.get(url)
    assert (response.status_code, response.content) == (200, CONTENT)
    headers = response.headers
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-disposition"] == f'attachment; filename="{url.split("/")[2]}.log"'
    assert headers["accept-ranges"] == "bytes"
    assert headers["content-length"] == str(len(CONTENT))
    assert "content-range" not in headers


@pytest.mark.parametrize(
    ("asked", "begin", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-9", 0, 10),
        ("bytes=5-", 5, None),
        ("bytes=-7", -7, None),
        ("bytes=100-99999999", 100, None),
        ("bytes=-99999999", 0, None),
        ("bytes= 3 - 5 ", 3, 6),
        (f"bytes=10-{3 * BLOCK_BYTES}", 10, None),
    ],
)
def test_a_range_is_sent_and_said(client, log, asked, begin, end):
    response = client.get(log[0], headers={"Range": asked})
    size = len(CONTENT)
    first, last, _ = slice(begin, end).indices(size)
    assert response.status_code == 206
    assert response.content == CONTENT[begin:end]
    assert response.headers["content-range"] == f"bytes {first}-{last - 1}/{size}"
    assert response.headers["content-length"] == str(last - first)


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=5-3",
        "bytes=0-1,4-5",
        "lines=1-2",
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "",
        "bytes=0x1-2",
    ],
)
def test_what_is_no_single_range_of_bytes_is_answered_with_all(client, log, asked):
    response = client.get(log[0], headers={"Range": asked})
    assert (response.status_code, response.content) == (200, CONTENT)


@pytest.mark.parametrize("asked", [f"bytes={len(CONTENT)}-", "bytes=99999999-99999999", "bytes=-0"])
def test_a_range_behind_the_end_is_416(client, log, asked):
    response = client.get(log[0], headers={"Range": asked})
    problem_of(response, 416, "range_not_satisfiable")
    assert response.headers["content-range"] == f"bytes */{len(CONTENT)}"


def test_a_range_of_another_version_is_not_sent(client, log):
    url, path = log
    tag = client.get(url).headers["etag"]
    assert tag.startswith('"')
    assert tag.endswith('"')

    def asked(if_range: str) -> int:
        headers = {"Range": "bytes=2-3", "If-Range": if_range}
        return int(client.get(url, headers=headers).status_code)

    assert asked(tag) == 206
    assert asked(f"W/{tag}") == asked('"x"') == asked("Sun, 29 Nov 2026 00:00:00 GMT") == 200
    with path.open("ab") as file:
        file.write(b"more")
    assert client.get(url).headers["etag"] != tag
    assert asked(tag) == 200
    assert client.get(url, headers={"Range": f"bytes={len(CONTENT)}-"}).content == b"more"


def test_a_run_without_a_log_has_an_empty_one_and_no_run_none(client):
    run = create(client)
    response = client.get(f"/runs/{run['id']}/log")
    assert (response.status_code, response.content) == (200, b"")
    problem_of(client.get("/runs/none/log"), 404, "not_found")
    problem_of(client.get("/runs/none/log/stream"), 404, "not_found")


def test_a_log_that_grows_while_it_is_sent_is_sent_as_it_was(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"x" * (2 * BLOCK_BYTES))
    whole = WholeLog.of(path)
    blocks = whole.blocks(0, whole.size)
    first = next(blocks)
    with path.open("ab") as file:
        file.write(b"y" * 100)
    assert first + b"".join(blocks) == b"x" * (2 * BLOCK_BYTES)


def test_a_log_that_is_cut_while_it_is_sent_breaks_off(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"0123456789abcde\n" * (MAX_LOG_BYTES // 16 + 1))
    whole = WholeLog.of(path)
    blocks = whole.blocks(0, whole.size)
    next(blocks)
    assert cap_log(path) > 0
    with path.open("ab") as file:
        file.write(b"x" * (MAX_LOG_BYTES // 2))  # its size alone tells nothing now
    assert path.stat().st_size >= whole.size
    with pytest.raises(CorruptData, match="cut while it was read"):
        next(blocks)
    path.unlink()
    with pytest.raises(CorruptData, match="removed"):
        next(whole.blocks(0, 5))


def test_what_is_no_file_in_the_place_of_a_log_is_refused_at_once(client, log):
    url, path = log
    path.unlink()
    os.mkfifo(path)
    problem_of(client.get(url), 500, "corrupt_data")
    path.unlink()


def test_ranges_are_read_as_the_standard_has_them():
    assert range_of("bytes=0-", 5) == (0, 5)
    assert range_of("bytes=4-4", 5) == (4, 5)
    assert range_of("bytes=-3", 5) == (2, 5)
    assert range_of("bytes=3-2", 5) is None
    for header, size in (("bytes=0-", 0), ("bytes=-1", 0), ("bytes=5-", 5), ("bytes=-0", 5)):
        with pytest.raises(Unsatisfiable):
            range_of(header, size)


def test_the_stream_of_a_run_at_rest_can_be_read_from_any_id(client, plane, processes):
    run = stopped(client, processes)
    processes.last(run["id"]).folder.log_path.write_bytes(b"one\ntwo\nthree\n")
    found = []

    def ask(query: str, **headers: str) -> list[str]:
        plane.feed.closed = False
        with client.stream("GET", f"/runs/{run['id']}/log/stream{query}", headers=headers) as it:
            assert it.headers["content-type"].startswith("text/event-stream")
            texts, begin = [], ""
            for line in it.iter_lines():
                begin = begin or (line if line.startswith("id: ") else "")
                if line.startswith("data: ") and "text" in line:
                    texts.append(json.loads(line[6:])["text"])
                if line == "event: rests":
                    plane.feed.close()
            found.append(begin)
            return texts

    assert ask("?after=0") == ["one\ntwo\nthree\n"]
    assert ask("?after=4") == ["two\nthree\n"]
    assert ask("?after=4", **{"Last-Event-ID": "8"}) == ["three\n"]
    assert ask("?tail=1") == ["three\n"]
    assert ask("") == []
    assert found == ["id: 0", "id: 4", "id: 8", "id: 8", "id: 14"]
    for query in ("?after=-1", "?after=x", "?tail=5001", "?after=99999999999999999999"):
        refused = client.get(f"/runs/{run['id']}/log/stream{query}")
        problem_of(refused, 422, "invalid_request")
