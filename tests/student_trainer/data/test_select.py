"""Selecting the rows that a spec asks for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from lectern_common.errors import Incompatible, InvalidSpec
from lectern_common.roots import Roots
from lectern_common.spec.load import parse_spec
from lectern_common.spec.run_spec import RunSpec
from student_trainer.data.rows import in_order
from student_trainer.data.select import Data, open_data
from tests.support.training.shards import write_shards

S = 4


def spec_of(**data: Any) -> RunSpec:
    values = {"path": "text", "seq_len": S, **data}
    student = {"config": "small"}
    return parse_spec(
        {"name": "run", "student": student, "data": values, "objective": {"alpha": 1}}
    )


def opened(home: Path, **data: Any) -> Data:
    return open_data(spec_of(**data), Roots.of_home(home), 100, None)


def rows_to_tokens(rows: list[list[int]]) -> np.ndarray:
    """Rows of S tokens, one after the other, and a last label."""
    return np.array([token for row in rows for token in row] + [0])


def inputs_of(data: Data) -> list[list[int]]:
    return [row for batch in in_order(data.validation, 2) for row in batch.inputs_BS.tolist()]


def test_validation_rows_that_are_training_rows_too_are_left_out_and_counted(
    tmp_path: Path,
) -> None:
    rows = [[0, number, 1, 2] for number in range(3, 11)]
    rows[6] = rows[2]  # held out, and a training row
    write_shards(tmp_path / "data/text", rows_to_tokens(rows))
    with capture_logs() as logs:
        data = opened(tmp_path, validation_fraction=0.25)
    assert data.validation_duplicates == 1
    assert inputs_of(data) == [rows[7]]
    assert len(data.training) == 6
    [said] = [line for line in logs if line["event"] == "validation_rows_left_out"]
    assert said["rows"] == 1 and said["of"] == 2


def test_a_separate_validation_folder_is_checked_for_duplicates_too(tmp_path: Path) -> None:
    rows = [[0, number, 1, 2] for number in range(3, 11)]
    other = [[0, 50, 1, 2], rows[5], [0, 51, 1, 2]]
    write_shards(tmp_path / "data/text", rows_to_tokens(rows))
    write_shards(tmp_path / "data/other", rows_to_tokens(other))
    data = opened(tmp_path, validation_path="other")
    assert inputs_of(data) == [other[0], other[2]]
    assert data.validation_duplicates == 1 and len(data.training) == 8


def test_a_validation_set_of_only_training_rows_is_refused(tmp_path: Path) -> None:
    rows = [[0, number % 2, 1, 2] for number in range(8)]
    write_shards(tmp_path / "data/text", rows_to_tokens(rows))
    with pytest.raises(InvalidSpec, match=r"validation_fraction: all 2 held-out rows \(0\.25\)"):
        opened(tmp_path, validation_fraction=0.25)
    write_shards(tmp_path / "data/same", rows_to_tokens(rows))
    with pytest.raises(InvalidSpec, match=r"data.validation_path: all 8 held-out rows \(same\)"):
        opened(tmp_path, validation_path="same")


def test_distinct_rows_are_all_kept(tmp_path: Path) -> None:
    write_shards(tmp_path / "data/text", np.arange(81))
    data = opened(tmp_path, validation_fraction=0.25)
    assert data.validation_duplicates == 0
    assert [row[0] for row in inputs_of(data)] == [60, 64, 68, 72, 76]


def test_document_starts_must_be_known_to_keep_documents_apart(tmp_path: Path) -> None:
    write_shards(tmp_path / "data/text", np.arange(81))
    with pytest.raises(InvalidSpec, match=r"attention_across_documents: .*text does not record"):
        opened(tmp_path, attention_across_documents=False)


def test_the_hashes_cover_everything_that_was_read(tmp_path: Path) -> None:
    write_shards(tmp_path / "data/text", np.arange(81))
    write_shards(tmp_path / "data/chats", np.arange(81), mask=np.ones(81), documents=[0, 9])
    [plain] = opened(tmp_path).sha256s
    assert opened(tmp_path, path="chats").sha256s[0] == plain
    assert len(opened(tmp_path, path="chats").sha256s) == 3


def test_data_without_a_usable_row_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path / "data/text", np.arange(81), mask=np.zeros(81), content="text")
    with pytest.raises(Incompatible, match="no usable row: 20 with nothing that is learnt"):
        opened(tmp_path)


def test_validation_rows_begin_as_training_rows_do(tmp_path: Path) -> None:
    row: dict[str, Any] = {"bos_policy": "row", "bos_token_id": 99, "vocab_size": 100}
    write_shards(tmp_path / "data/text", np.arange(40), **row)
    write_shards(tmp_path / "data/other", np.arange(4, 16), **row)
    data = opened(tmp_path, validation_fraction=0.25)
    assert (len(data.training), len(data.validation)) == (8, 2)
    assert inputs_of(data) == [[99, 32, 33, 34], [99, 36, 37, 38]]
    # The same tokens behind the same first token are the same row.
    with pytest.raises(InvalidSpec, match="all 3 held-out rows"):
        opened(tmp_path, validation_path="other")
