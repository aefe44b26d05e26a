"""Rows of whole chats: what is a label, what is padding, and what is left out."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from structlog.testing import capture_logs

from lectern_common.checks.row_counts import DatasetRows
from lectern_common.errors import CorruptData, Incompatible, InvalidSpec
from lectern_common.roots import Roots
from lectern_common.spec.load import parse_spec
from lectern_common.tokens import shards
from lectern_common.tokens.shards import read_manifest
from lectern_common.wire.formats import Representation
from student_trainer.batch import Batch
from student_trainer.data import chat_dataset
from student_trainer.data.chat_dataset import OpenedChats, open_chats
from student_trainer.data.chats import ChatRows
from student_trainer.data.dataset import open_dataset
from student_trainer.data.rows import batch_from, in_order
from student_trainer.data.select import Data, open_data
from student_trainer.data.sources import ShardBatchSource
from student_trainer.student.forward import ask
from student_trainer.targets import IGNORE_INDEX, DenseTargets
from student_trainer.teacher.probe import ProbeRows
from tests.support.training.shards import write_shards

S = 8


def chat(number: int, asked: int, answered: int) -> tuple[list[int], list[int]]:
    """Returns a chat's ids and mask: `asked` ids of 100 + number, `answered` of 200 + number."""
    ids = [100 + number] * asked + [200 + number] * answered
    return ids, [0] * asked + [1] * answered


def write_chats(folder: Path, *chats: tuple[list[int], list[int]], **fields: Any) -> Path:
    starts = np.cumsum([0, *(len(ids) for ids, _ in chats[:-1])])
    return write_shards(
        folder,
        [token for ids, _ in chats for token in ids],
        mask=[byte for _, mask in chats for byte in mask],
        documents=starts,
        **{"vocab_size": 300, "shards": 2, **fields},
    )


def opened(folder: Path, seq_len: int = S, **settings: Any) -> OpenedChats:
    defaults: dict[str, Any] = {"attention_across_documents": False, "long_chats": "cut"}
    return open_chats(folder, seq_len, 300, 0.0, **{**defaults, **settings})


def rows_of(folder: Path, seq_len: int = S, **settings: Any) -> ChatRows:
    chats = opened(folder, seq_len, **settings)
    return chats.rows_of(np.arange(len(chats.hashes)))


def learnt_of(batch: Batch) -> list[int]:
    learnt: list[int] = batch.labels_BS[batch.valid_BS].tolist()
    return learnt


def many_chats(count: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    draw = np.random.default_rng(seed)
    pairs = draw.integers(1, 12, (count, 2)).tolist()
    return [chat(index % 90, *pair) for index, pair in enumerate(pairs)]


def test_chats_lie_whole_in_a_row_and_the_rest_is_padding(tmp_path: Path) -> None:
    folder = write_chats(tmp_path, chat(1, 2, 3), chat(2, 4, 4), chat(3, 1, 2))
    rows = rows_of(folder)
    assert len(rows) == 2
    assert rows.row(0).tolist() == [101, 101, 201, 201, 201, 103, 203, 203, 0]
    batch = batch_from(rows, [0, 1])
    masked = IGNORE_INDEX
    assert batch.labels_BS.tolist() == [
        [masked, 201, 201, 201, masked, 203, 203, masked],
        [masked, masked, masked, 202, 202, 202, 202, masked],
    ]
    assert batch.position_ids_BS is not None
    assert batch.position_ids_BS.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert batch.lengths_B is None and batch.num_tokens == 16
    assert rows.padding == 0


def test_padding_is_a_document_of_its_own_and_no_token(tmp_path: Path) -> None:
    rows = rows_of(write_chats(tmp_path, chat(1, 1, 2), chat(2, 1, 1)))
    batch = batch_from(rows, [0])
    assert batch.inputs_BS.tolist() == [[101, 201, 201, 102, 202, 0, 0, 0]]
    assert batch.position_ids_BS is not None
    assert batch.position_ids_BS.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]
    assert batch.num_tokens == 5 and batch.num_valid == 3
    assert [part.num_tokens for part in batch.micro_batches(1)] == [5]
    assert rows.padding == 3 / 8


@pytest.mark.parametrize("seq_len", [24, 31, 64, 500])
def test_every_learnt_label_of_a_chat_that_fits_is_in_the_rows_once(
    tmp_path: Path, seq_len: int
) -> None:
    chats = many_chats(300)
    rows = rows_of(write_chats(tmp_path, *chats), seq_len)
    seen = []
    for index in range(len(rows)):
        batch = batch_from(rows, [index])
        for ids, valid in batch.sequences():
            # The whole question stands before its answer.
            asked = int(np.argmax(ids >= 200)) if (ids >= 200).any() else len(ids)
            assert (ids[:asked] == ids[0]).all() and valid[:-1].tolist() == (
                ids[1:] >= 200
            ).tolist()
            seen.append((int(ids[0]), asked))
        assert batch.num_tokens <= seq_len
    expected = [(ids[0], mask.index(1)) for ids, mask in chats]
    assert sorted(seen) == sorted(expected)


@pytest.mark.parametrize(("seq_len", "learnt"), [(64, 32), (256, 50), (1024, 50)])
def test_no_answer_is_learnt_without_its_question(
    tmp_path: Path, seq_len: int, learnt: int
) -> None:
    """400 chats of 83 tokens, 33 of them the question; 65 tokens remain of each at seq_len 64."""
    folder = write_chats(tmp_path, *(chat(index % 90, 33, 50) for index in range(400)))
    asked = list[int]()
    for batch in in_order(rows_of(folder, seq_len), 8):
        assert batch.num_tokens <= 8 * seq_len
        for ids, valid in batch.sequences():
            assert (ids[:33] < 200).all() and not valid[:32].any()
            asked.append(int(valid.sum()))
    assert asked == [learnt] * 400


def test_a_long_chat_keeps_its_beginning(tmp_path: Path) -> None:
    folder = write_chats(tmp_path, chat(1, 4, 20), chat(2, 30, 9), chat(3, 1, 1))
    chats = opened(folder)
    assert (chats.cut, chats.dropped, chats.unlabelled) == (1, 0, 1)
    rows = chats.rows_of(np.arange(2))
    assert rows.row(0).tolist() == [101] * 4 + [201] * 5
    assert learnt_of(batch_from(rows, [0])) == [201] * 5


def test_long_chats_are_dropped_if_the_spec_says_so(tmp_path: Path) -> None:
    folder = write_chats(tmp_path, chat(1, 4, 20), chat(2, 30, 9), chat(3, 1, 1))
    with capture_logs() as logs:
        chats = opened(folder, long_chats="drop")
    assert (chats.cut, chats.dropped, chats.unlabelled) == (0, 2, 0)
    assert [chats.chats.row(0).tolist()] == [[103, 203]]
    [said] = [line for line in logs if line["event"] == "chats_cut_or_left_out"]
    assert said["dropped"] == 2 and said["of"] == 3


def test_long_chats_are_refused_if_the_spec_says_so(tmp_path: Path) -> None:
    folder = write_chats(tmp_path, chat(1, 4, 5), chat(2, 3, 7))
    expected = r"data.long_chats: error: 1 of 2 chats .* more than 8 \+ 1 .*longest 10.*raise"
    with pytest.raises(InvalidSpec, match=expected):
        opened(folder, long_chats="error")
    assert opened(folder, 9, long_chats="error").cut == 0


def test_chats_may_attend_to_each_other_and_still_lie_whole(tmp_path: Path) -> None:
    folder = write_chats(tmp_path, chat(1, 2, 1), chat(2, 1, 2))
    rows = rows_of(folder, attention_across_documents=True)
    batch = batch_from(rows, [0])
    assert batch.position_ids_BS is None
    assert learnt_of(batch) == [201, 202, 202]
    [(ids, valid)] = batch.sequences()
    assert ids.tolist() == [101, 101, 201, 102, 202, 202]  # no padding is asked about
    assert valid.tolist() == [False, True, False, True, True, False]


def test_a_first_token_is_never_the_label_of_another_chat(tmp_path: Path) -> None:
    chats = [([200, 201, 202], [1, 1, 1]), ([210, 211], [1, 1])]
    for across in (True, False):
        folder = write_chats(tmp_path / str(across), *chats)
        batch = batch_from(rows_of(folder, attention_across_documents=across), [0])
        assert learnt_of(batch) == [201, 202, 211]


def test_without_a_mask_every_token_of_a_chat_is_learnt(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, [5, 6, 7, 8, 9], documents=[0, 3], content="chats")
    assert learnt_of(batch_from(rows_of(folder), [0])) == [6, 7, 9]


def test_a_chat_with_ids_that_the_student_lacks_is_left_out_alone(tmp_path: Path) -> None:
    folder = write_chats(tmp_path, chat(1, 1, 2), chat(95, 1, 2), chat(3, 1, 2))
    with capture_logs() as logs:
        found = open_chats(folder, S, 290, 0.4, attention_across_documents=False, long_chats="cut")
    assert found.bad_rows == [1] and len(found.chats) == 2
    [said] = [line for line in logs if line["event"] == "chats_left_out"]
    assert said["chats"] == 1
    with pytest.raises(Incompatible, match=r"1 of 3 chats .*33.33%.* chats 1"):
        open_chats(folder, S, 290, 0.3, attention_across_documents=False, long_chats="cut")
    # Behind a cut no id matters.
    assert (
        open_chats(
            write_chats(tmp_path / "cut", ([1] * 5 + [2] * 4 + [299], [1] * 10)),
            S,
            290,
            0.0,
            attention_across_documents=False,
            long_chats="cut",
        ).bad_rows
        == []
    )


@pytest.mark.parametrize("scan", [1, 7, 1 << 20])
def test_what_is_found_does_not_depend_on_the_block_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scan: int
) -> None:
    folder = write_chats(tmp_path, *many_chats(60), shards=3)
    whole = opened(folder, 12)
    monkeypatch.setattr(chat_dataset, "_SCAN_TOKENS", scan)
    cut = opened(folder, 12)
    assert cut.hashes.tolist() == whole.hashes.tolist()
    assert cut.chats.starts.tolist() == whole.chats.starts.tolist()
    assert 0 < cut.cut < 60 and cut.unlabelled == whole.unlabelled


@pytest.mark.parametrize("name", ["shard-00000.bin", "mask-00001.bin", "documents.bin"])
def test_changed_bytes_are_refused(tmp_path: Path, name: str) -> None:
    folder = write_chats(tmp_path, *many_chats(20))
    path = folder / name
    data = bytearray(path.read_bytes())
    data[9] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptData):
        opened(folder)


def spec_of(**data: Any) -> Any:
    values = {"path": "chats", "seq_len": S, "validation_fraction": 0.25, **data}
    if "validation_path" in data:
        del values["validation_fraction"]
    body = {"name": "run", "student": {"config": "small"}, "data": values}
    return parse_spec({**body, "objective": {"alpha": 1}})


def selected(home: Path, **data: Any) -> Data:
    return open_data(spec_of(**data), Roots.of_home(home), 300, None)


def chats_in(batches: Any) -> list[int]:
    return sorted({int(ids[0]) for batch in batches for ids, _ in batch.sequences()})


@pytest.mark.parametrize("rule", ["cut", "drop"])
@pytest.mark.parametrize(
    ("fraction", "trained_on"),
    [(0.01, [0, 1, 2, 3]), (0.3, [0, 1, 2, 3]), (0.5, [0, 1]), (0.6, [0, 1])],
)
def test_all_sequences_of_a_chat_are_held_out_together(
    tmp_path: Path, fraction: float, trained_on: list[int], rule: str
) -> None:
    """Four chats of 1, 1, 2 and 4 sequences; the first of the last chat is long.

    The checks before a run count the same rows.
    """
    parts = [chat(index, 2, 2) for index in range(8)]
    parts[4] = ([104] * 2 + [204] * 12, [0] * 2 + [1] * 12)
    folder = write_chats(tmp_path / "data/chats", *parts, chats=[0, 1, 2, 4])
    data = selected(tmp_path, validation_fraction=fraction, long_chats=rule)
    assert chats_in(in_order(data.training, 2)) == [100 + index for index in trained_on]
    first = 5 if rule == "drop" else 4
    held = sorted({2, 3, 4, 5, 6, 7} - set(trained_on) - set(range(4, first)))
    assert chats_in(in_order(data.validation, 2)) == [100 + index for index in held]
    spec = spec_of(validation_fraction=fraction, long_chats=rule)
    rows = DatasetRows(folder, read_manifest(folder), spec.data)
    assert rows.counts_without(fraction) == (len(data.training), len(data.validation))


def test_the_sequences_of_one_chat_are_not_enough(tmp_path: Path) -> None:
    folder = write_chats(tmp_path / "data/chats", *(chat(n, 2, 2) for n in range(6)), chats=[0])
    said = r"validation_fraction: holding out 0.25 of 1 chat leaves none to train on"
    with pytest.raises(InvalidSpec, match=said):
        selected(tmp_path)
    with pytest.raises(InvalidSpec, match=said):
        DatasetRows(folder, read_manifest(folder), spec_of().data).counts_without(0.25)


def test_the_last_chats_are_held_out_and_packed_by_themselves(tmp_path: Path) -> None:
    write_chats(tmp_path / "data/chats", *(chat(index, 2, 2) for index in range(8)))
    data = selected(tmp_path)
    assert chats_in(in_order(data.validation, 2)) == [106, 107]
    assert chats_in(in_order(data.training, 2)) == [100, 101, 102, 103, 104, 105]
    assert len(data.training) == 3 and len(data.validation) == 1
    assert data.packs_chats
    assert data.described == {
        "attention_across_documents": False,
        "training_chats": 6,
        "chats_cut": 0,
        "chats_dropped": 0,
        "chats_without_labels": 0,
        "chats_with_unknown_ids": 0,
        "padding": 0.0,
    }


def test_a_held_out_chat_that_is_a_training_chat_too_is_left_out(tmp_path: Path) -> None:
    """Wherever the two lie in their rows."""
    chats = [chat(index, 2, 1 + index % 3) for index in range(8)]
    chats[7] = chats[2]
    write_chats(tmp_path / "data/chats", *chats)
    with capture_logs() as logs:
        data = selected(tmp_path)
    assert data.validation_duplicates == 1
    assert chats_in(in_order(data.validation, 2)) == [106]
    [said] = [line for line in logs if line["event"] == "validation_chats_left_out"]
    assert said["chats"] == 1 and said["of"] == 2
    write_chats(tmp_path / "data/same", *chats[:3])
    with pytest.raises(InvalidSpec, match=r"all 3 held-out chats \(same\) are also training chats"):
        selected(tmp_path, validation_path="same")


def test_a_chat_that_ends_earlier_is_no_duplicate(tmp_path: Path) -> None:
    """Padding is not part of a chat, although id 0 is an id."""
    write_chats(tmp_path / "data/chats", ([7, 8, 0], [0, 1, 1]), ([7, 9], [0, 1]))
    write_chats(tmp_path / "data/other", ([7, 8], [0, 1]), ([7, 8, 0, 0], [0, 1, 1, 1]))
    assert selected(tmp_path, validation_path="other").validation_duplicates == 0


def test_documents_are_apart_in_chats_and_not_in_text_unless_set(tmp_path: Path) -> None:
    write_chats(tmp_path / "data/chats", *many_chats(30))
    write_shards(tmp_path / "data/text", np.arange(200) % 90, documents=[0, 50])

    def apart(**data: Any) -> bool:
        batch = batch_from(selected(tmp_path, **data).training, [0])
        return batch.position_ids_BS is not None

    assert apart() and apart(attention_across_documents=False)
    assert not apart(attention_across_documents=True)
    assert not apart(path="text")
    assert apart(path="text", attention_across_documents=False)


def test_a_rule_for_long_chats_has_no_effect_on_text(tmp_path: Path) -> None:
    write_shards(tmp_path / "data/text", np.arange(200) % 90)
    with pytest.raises(InvalidSpec, match=r"data.long_chats: has no effect: text holds text"):
        selected(tmp_path, path="text", long_chats="drop")


def test_chats_without_known_starts_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path / "data/chats", np.arange(90), mask=np.ones(90))
    with pytest.raises(InvalidSpec, match=r"data.path: .*does not record where each begins"):
        selected(tmp_path)


def test_data_without_a_usable_chat_is_refused(tmp_path: Path) -> None:
    write_chats(tmp_path / "data/chats", chat(1, 9, 3), chat(2, 20, 3), chat(3, 3, 0))
    with pytest.raises(Incompatible, match=r"no usable chat: 2 longer than .*, 1 with nothing"):
        selected(tmp_path, long_chats="drop")


@pytest.mark.parametrize("rule", ["cut", "drop"])
@pytest.mark.parametrize("several", [None, [0, 2, 3, 6, 9, 10, 12, 14, 18, 20]])
@pytest.mark.parametrize("block", [5, 1 << 22])
def test_the_checks_before_a_run_count_what_the_trainer_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, several: Any, block: int
) -> None:
    """Chats that are long, learn nothing, have unknown ids, or several of these at once."""
    monkeypatch.setattr(shards, "_BLOCK_VALUES", block)
    chats = [chat(index, 1 + index % 3, 1 + index % 4) for index in range(24)]
    chats[3] = ([110] * 30, [0] * 2 + [1] * 28)
    chats[5] = ([111] * 30, [0] * 29 + [1])
    chats[8] = chat(12, 4, 0)
    chats[11] = ([112, 299, 299], [0, 1, 1])
    chats[14] = ([113] * 12 + [299], [0] + [1] * 12)
    chats[16] = ([299] * 20, [0] * 20)
    folder = write_chats(tmp_path / "data/chats", *chats, chats=several)
    spec = spec_of(seq_len=7, long_chats=rule, max_bad_rows_fraction=0.2)
    data = open_data(spec, Roots.of_home(tmp_path), 290, None)
    rows = DatasetRows(folder, read_manifest(folder), spec.data, 290)
    rows.require_usable()
    counts = rows.counts(0.25)
    said = counts.as_json()
    assert counts.unknown == 2 and counts.unlabelled >= 1 and counts.cut + counts.dropped >= 2
    for name in data.described.keys() - {"attention_across_documents", "padding"}:
        assert said[name] == data.described[name], name
    assert round(counts.padding, 4) == data.described["padding"]
    assert (counts.training_rows, counts.held_out_rows) == (
        len(data.training),
        len(data.validation),
    )
    assert counts.total == counts.training + counts.held_out + sum(counts.left_out().values())


@pytest.mark.parametrize("row_bos", [{}, {"bos_policy": "row", "bos_token_id": 1}])
def test_rows_of_text_with_unknown_ids_are_those_of_the_trainer(
    tmp_path: Path, row_bos: dict[str, Any]
) -> None:
    tokens = np.random.default_rng(3).integers(0, 40, 203)
    tokens[[0, 16, 63, 64, 65, 202]] = 60
    folder = write_shards(tmp_path / "data/text", tokens, shards=3, **row_bos)
    spec = spec_of(path="text", seq_len=8, max_bad_rows_fraction=0.5)
    rows = DatasetRows(folder, read_manifest(folder), spec.data, 50)
    assert rows.unknown.tolist() == open_dataset(folder, 8, 50, 0.5).bad_rows
    data = open_data(spec, Roots.of_home(tmp_path), 50, None)
    assert rows.counts_without(0.25)[0] == len(data.training)


class Asked:
    """A teacher that keeps what it is asked about."""

    def __init__(self) -> None:
        self.sequences: list[list[int]] = []

    def score(
        self,
        sequences: list[npt.NDArray[np.uint32]],
        positions: list[npt.NDArray[np.bool_]],
        representation: Representation,
        temperature: float,
    ) -> DenseTargets:
        import torch

        self.sequences += [ids.tolist() for ids in sequences]
        return DenseTargets(torch.zeros(sum(int(asked.sum()) for asked in positions), 4))


def test_a_teacher_is_asked_about_each_chat_and_never_about_padding(tmp_path: Path) -> None:
    rows = rows_of(write_chats(tmp_path, chat(1, 1, 2), chat(2, 2, 1)))
    teacher = Asked()
    targets = ask(teacher, batch_from(rows, [0]), Representation("dense"), 1.0)  # type: ignore[arg-type]
    assert teacher.sequences == [[101, 201, 201], [102, 102, 202]]
    assert len(targets) == 3
    probed = ProbeRows.of_batch(batch_from(rows, [0]))
    assert [ids.tolist() for ids in probed.sequences] == teacher.sequences


def test_a_source_of_chats_gives_the_rows_of_a_run(tmp_path: Path) -> None:
    folder = write_chats(tmp_path, *many_chats(40))
    source, rows = ShardBatchSource.open(folder), rows_of(folder, 30)
    count = len(rows)
    batch, expected = source.next_rows(count + 1, 30), batch_from(rows, [*range(count), 0])
    for name in ("inputs_BS", "labels_BS", "position_ids_BS", "lengths_B"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(expected, name))
    source.reset()
    inputs, labels = source.next_batch(2, 30)
    np.testing.assert_array_equal(inputs, expected.inputs_BS[:2])
    np.testing.assert_array_equal(labels, expected.labels_BS[:2])
