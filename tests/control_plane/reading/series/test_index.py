"""The index is not believed: what does not fit is made again, and what cannot be kept is held."""

import errno
import json
import os
from pathlib import Path

import pytest

from control_plane.reading.series import index as index_module
from control_plane.reading.series.chunk import chunk_of as made_chunk
from control_plane.reading.series.index import Index
from control_plane.reading.series.indexes import Indexes
from control_plane.reading.series.query import series_of
from lectern_common.json_lines import append_json_line, keep_lines_before
from lectern_common.run.folder import RunFolder


def write(path: Path, first: int, last: int, loss: float = 1.0) -> None:
    with path.open("a") as file:
        for step in range(first, last):
            file.write(json.dumps({"step": step, "loss/total": loss}) + "\n")


def losses(index: Index, path: Path) -> tuple[float, float, int]:
    """Returns (lowest, highest, number) of the losses."""
    buckets = series_of(index.up_to_date(), path, max_points=16).series["loss/total"]
    return buckets["min"].min(), buckets["max"].max(), int(buckets["count"].sum())


class Parses:
    """Counts the chunks that are made."""

    def __init__(self, monkeypatch) -> None:
        self.count = 0

        def chunk_of(*args):
            self.count += 1
            return made_chunk(*args)

        monkeypatch.setattr(index_module, "chunk_of", chunk_of)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


@pytest.fixture
def index_path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.index"


def test_a_restart_and_growth_parse_only_what_is_new(path, index_path, monkeypatch):
    parses = Parses(monkeypatch)
    write(path, 0, 5000)
    Index(path, index_path).up_to_date()
    assert parses.count == 4
    index = Index(path, index_path)
    index.up_to_date()
    write(path, 5000, 6200)
    index.up_to_date()
    assert parses.count == 6


def test_a_build_that_is_left_goes_on_where_it_was(path, index_path, monkeypatch):
    parses = Parses(monkeypatch)
    write(path, 0, 5000)
    Index(path, index_path).up_to_date(lambda: False)
    assert parses.count == 1
    assert losses(Index(path, index_path), path) == (1.0, 1.0, 5000)
    assert parses.count == 4


def test_a_resume_makes_again_only_what_was_cut(path, index_path, monkeypatch):
    parses = Parses(monkeypatch)
    write(path, 0, 9000)
    index = Index(path, index_path)
    index.up_to_date()
    keep_lines_before(path, 7000)
    write(path, 7000, 9500, loss=2.0)
    assert losses(index, path) == (1.0, 2.0, 9500)
    assert parses.count == 8 + 3
    assert losses(Index(path, index_path), path) == (1.0, 2.0, 9500)
    assert parses.count == 11


@pytest.mark.parametrize("how", ["replaced", "rewritten", "emptied", "one value"])
def test_another_content_is_indexed_anew(path, index_path, how):
    write(path, 0, 5000)
    index = Index(path, index_path)
    index.up_to_date()
    if how == "replaced":
        path.unlink()
        write(path, 0, 5000, loss=7.0)
    elif how == "rewritten":
        text = path.read_text().replace("1.0", "7.0")
        path.write_text(text)
    elif how == "emptied":
        path.write_text("")
        write(path, 0, 5000, loss=7.0)
    else:
        with path.open("r+b") as file:
            lines = file.read().splitlines(keepends=True)
            file.seek(sum(map(len, lines[:2500])))
            file.write(lines[2500].replace(b"1.0", b"7.0"))
        os.utime(path, (1, 1))
    expected = (1.0 if how == "one value" else 7.0, 7.0, 5000)
    assert losses(index, path) == expected
    assert losses(Index(path, index_path), path) == expected


@pytest.mark.parametrize("damage", [b"", b"garbage", b"lectern metrics index 2 7\n", b"x" * 5000])
def test_an_index_of_another_form_is_made_again(path, index_path, damage):
    write(path, 0, 3000)
    index_path.write_bytes(damage)
    assert losses(Index(path, index_path), path) == (1.0, 1.0, 3000)
    assert index_path.read_bytes().startswith(b"lectern metrics index 1 ")


def test_a_copied_run_folder_keeps_its_index(path, index_path, tmp_path, monkeypatch):
    write(path, 0, 3000)
    Index(path, index_path).up_to_date()
    parses = Parses(monkeypatch)
    copy = tmp_path / "copy"
    copy.mkdir()
    for source in (path, index_path):
        (copy / source.name).write_bytes(source.read_bytes())
    found = losses(Index(copy / path.name, copy / index_path.name), copy / path.name)
    assert (found, parses.count) == ((1.0, 1.0, 3000), 0)


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_an_index_that_cannot_be_written_lies_in_memory_and_stays_small(
    path, index_path, monkeypatch, number
):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr("control_plane.reading.series.index_file.write_atomic", refuse)
    monkeypatch.setattr(index_module, "MAX_CHUNKS_IN_MEMORY", 4)
    write(path, 0, 12_000)
    index = Index(path, index_path)
    assert losses(index, path) == (1.0, 1.0, 12_000)
    write(path, 12_000, 20_000, loss=3.0)
    assert losses(index, path) == (1.0, 3.0, 20_000)
    assert len(index.up_to_date().chunks) <= 4
    assert not index_path.exists()


def test_short_metrics_leave_no_index_behind(path, index_path):
    write(path, 0, 1000)
    assert losses(Index(path, index_path), path) == (1.0, 1.0, 1000)
    assert not index_path.exists()


def test_keys_beyond_a_limit_are_counted_not_kept(path, index_path):
    for step in range(1100):
        append_json_line(path, {"step": step, f"key/{step}": 1.0, "x" * 300: 2.0})
    answer = series_of(Index(path, index_path).up_to_date(), path, max_points=16)
    assert len(answer.keys) == 512
    assert answer.keys_left_out > 0


def test_long_metrics_are_indexed_before_anyone_asks(tmp_path):
    folders = []
    for name, lines in (("long", 3000), ("short", 1100), ("none", 0)):
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir()
        if lines:
            write(folder.metrics_path, 0, lines)
        folders.append(folder)
    size = folders[1].metrics_path.stat().st_size
    indexes = Indexes()
    indexes.catch_up(folders, behind_bytes=size)
    assert [folder.metrics_index_path.exists() for folder in folders] == [True, False, False]
    assert len(indexes.of(folders[1]).chunks) == 1


def test_catching_up_ends_when_it_is_closed(tmp_path):
    folder = RunFolder(tmp_path)
    write(folder.metrics_path, 0, 5000)
    indexes = Indexes()
    indexes.close()
    indexes.catch_up([folder], behind_bytes=0)
    assert not folder.metrics_index_path.exists()
