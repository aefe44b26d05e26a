"""What a killed recorder, or a power cut, leaves behind."""

from pathlib import Path

import numpy as np
import pytest

from lectern_common.errors import Conflict, CorruptData
from lectern_common.teacher.record.index import ENTRY, SequenceIndex
from lectern_common.teacher.record.manifest import RecordFormat, RecordPart
from lectern_common.teacher.record.reader import PartReader
from student_trainer.record.writer import PartWriter, recording

PLAN: dict[str, object] = {"of": "this"}
LOGGED_BYTES = 52  # an entry and its checksum
A, B, C = (np.array(ids, np.uint32) for ids in ([1, 2, 3], [4, 5, 6], [7, 8, 9, 10]))


def asked(*positions: int, of: np.ndarray = A) -> np.ndarray:
    chosen = np.zeros(len(of), bool)
    chosen[list(positions)] = True
    return chosen


def rows(*values: int) -> np.ndarray:
    return np.array(values, np.uint8)


def three(tmp_path: Path) -> tuple[Path, Path]:
    """A part of three sequences, of one byte a row, as its writer left it."""
    folder, log = tmp_path / "part", tmp_path / "part.entries"
    with PartWriter(folder, log) as part:
        part.add(A, asked(0, 1, 2), rows(1, 2, 3))
        part.add(B, asked(1, of=B), rows(4))
        part.add(C, asked(0, 3, of=C), rows(5, 6))
        part.save()
    return folder, log


@pytest.mark.parametrize("left", [b"\0" * LOGGED_BYTES, b"\0" * 3 * LOGGED_BYTES + b"x", b"half"])
def test_zeros_and_half_entries_after_a_power_cut_do_not_count(tmp_path, left):
    folder, log = three(tmp_path)
    whole = log.read_bytes()
    log.write_bytes(whole + left)
    (folder / "rows.bin").write_bytes((folder / "rows.bin").read_bytes() + b"\0\0")
    with PartWriter(folder, log) as part:
        assert (part.sequences, part.rows, part.bytes_of_rows) == (3, 6, 6)
    assert log.read_bytes() == whole
    assert (folder / "rows.bin").read_bytes() == bytes([1, 2, 3, 4, 5, 6])


@pytest.mark.parametrize("byte", range(LOGGED_BYTES))
def test_an_entry_of_which_any_byte_is_lost_is_asked_for_again(tmp_path, byte):
    """Its key too, which the checksum of the rows does not cover."""
    folder, log = three(tmp_path)
    data = bytearray(log.read_bytes())
    data[2 * LOGGED_BYTES + byte] ^= 0x40
    log.write_bytes(data)
    with PartWriter(folder, log) as part:
        assert part.sequences == 2
        assert part.has(B, asked(1, of=B))
        assert not part.has(C, asked(0, 3, of=C))


@pytest.mark.parametrize("name", ["rows.bin", "masks.bin"])
def test_rows_that_are_not_what_the_entry_says_are_asked_for_again(tmp_path, name):
    folder, log = three(tmp_path)
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    with PartWriter(folder, log) as part:
        assert part.sequences == 2


def opened(folder: Path, sequences: int, num_rows: int) -> PartReader:
    form = RecordFormat(name="hidden")
    part = RecordPart(
        name="part", format=form, temperature=None, sequences=sequences, rows=num_rows
    )
    return PartReader(folder, part)


def test_equal_tokens_with_other_positions_have_rows_each(tmp_path):
    """A turn of a chat that is learnt here and not there: none of its rows is lost."""
    folder, log = tmp_path / "part", tmp_path / "part.entries"
    with PartWriter(folder, log) as part:
        part.add(A, asked(2), rows(30))
        assert not part.has(A, asked(0, 2))
        part.add(A, asked(0, 2), rows(10, 30))
        part.add(A, asked(0, 2), rows(99, 99))  # once only
        part.write_index()
        assert (part.sequences, part.rows) == (2, 3)
    with PartWriter(folder, log) as part:
        assert part.has(A, asked(2))
        assert part.has(A, asked(0, 2))
    reader = opened(folder, 2, 3)
    for positions, values in (((2,), [30]), ((0, 2), [10, 30])):
        found = reader.read(A, asked(*positions))
        assert found is not None
        assert found.data[found.asked].tolist() == values
    assert reader.read(A, asked(1, 2)) is None
    assert not reader.has(A, asked(1, 2))


def test_a_partial_question_gets_its_rows_of_those_recorded(tmp_path):
    folder, _ = three(tmp_path)
    with PartWriter(folder, tmp_path / "part.entries") as part:
        part.write_index()
    found = opened(folder, 3, 6).read(A, asked(1, 2))
    assert found is not None
    assert found.data[found.asked].tolist() == [2, 3]


def test_an_index_out_of_order_is_refused(tmp_path):
    entries = np.zeros(2, ENTRY)
    entries["key"] = [np.void(b"b" * 16), np.void(b"a" * 16)]
    (tmp_path / "index.bin").write_bytes(entries.tobytes())
    with pytest.raises(CorruptData, match="rising order"):
        SequenceIndex(tmp_path / "index.bin")


def test_what_was_killed_before_it_had_its_name_is_not_given_to_another_plan(tmp_path):
    with recording(tmp_path / "answers", PLAN) as writer:
        (writer.folder / "manifest.json").write_text("{}")
    with (
        pytest.raises(Conflict, match="begun with another of"),
        recording(tmp_path / "answers", {"of": "that"}),
    ):
        pass
    with recording(tmp_path / "answers", PLAN) as writer:
        assert writer.is_whole()
        writer.put_in_place()
    assert (tmp_path / "answers" / "manifest.json").exists()
    assert not writer.work.exists()


def test_what_was_killed_after_it_had_its_name_is_done(tmp_path):
    with recording(tmp_path / "answers", PLAN) as writer:
        writer.folder.rename(writer.record)
    with recording(tmp_path / "answers", PLAN) as writer:
        assert writer.is_whole()
        writer.put_in_place()
    assert [path.name for path in tmp_path.iterdir()] == ["answers"]


def test_a_record_that_came_meanwhile_does_not_end_a_recording(tmp_path):
    with recording(tmp_path / "answers", PLAN) as writer:
        (writer.folder / "rows").write_text("some")
    (tmp_path / "answers").mkdir()
    with pytest.raises(Conflict, match="is there already"), recording(tmp_path / "answers", PLAN):
        pass
    assert (writer.folder / "rows").read_text() == "some"


def test_a_record_is_made_by_one_process_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("student_trainer.record.writer.LOCK_PATIENCE_SECONDS", 0.0)
    with (
        recording(tmp_path / "answers", PLAN),
        pytest.raises(Conflict, match="made by another process"),
        recording(tmp_path / "answers", PLAN),
    ):
        pass


def test_files_that_a_killed_process_was_replacing_are_no_part_of_the_record(tmp_path):
    with recording(tmp_path / "answers", PLAN) as writer:
        (writer.folder / "training").mkdir()
        for name in (".teacher.binpb.12.tmp", "training/.index.bin.12.tmp"):
            (writer.folder / name).write_text("half")
    with recording(tmp_path / "answers", PLAN) as writer:
        assert [path.name for path in writer.folder.rglob("*")] == ["training"]
