"""Sequential sources: shapes, next-token labels, wrap-around."""

from pathlib import Path

import numpy as np
import pytest

from lectern_common.errors import InvalidRequest
from student_trainer.batch import Batch, batch_of
from student_trainer.data.sources import ShardBatchSource, SyntheticBatchSource
from student_trainer.data.stream import TokenStream, synthetic_row
from student_trainer.targets import IGNORE_INDEX
from tests.support.training.shards import write_shards


def counting(*sizes: int) -> TokenStream:
    """A stream of 0, 1, 2, ... cut into shards of the given sizes."""
    ends = np.cumsum(sizes)
    tokens = np.arange(ends[-1], dtype=np.uint32)
    return TokenStream(np.split(tokens, ends[:-1]))


def test_shard_rows_have_the_right_shape_and_next_token_labels() -> None:
    """F-DISTILL-SHARD-BATCH-001: the shard 0..4095."""
    source = ShardBatchSource(counting(4096))
    inputs, labels = source.next_batch(4, 128)
    assert inputs.shape == labels.shape == (4, 128)
    assert inputs.dtype == labels.dtype == np.int64
    np.testing.assert_array_equal(inputs, np.arange(512).reshape(4, 128))
    np.testing.assert_array_equal(labels, inputs + 1)
    inputs, labels = source.next_batch(4, 128)
    np.testing.assert_array_equal(inputs, 512 + np.arange(512).reshape(4, 128))
    np.testing.assert_array_equal(labels, inputs + 1)


def test_a_short_shard_wraps_around_and_no_label_crosses_the_end() -> None:
    """F-DISTILL-SHARD-BATCH-002: a shard of 128 tokens, rows of 32."""
    source = ShardBatchSource(counting(128))
    firsts = []
    for _ in range(4):
        inputs, labels = source.next_batch(2, 32)
        assert inputs.shape == (2, 32)
        np.testing.assert_array_equal(labels, inputs + 1)
        firsts += inputs[:, 0].tolist()
    # The fourth row would need token 128 as its last label.
    assert firsts == [0, 32, 64, 0, 32, 64, 0, 32]


def test_a_row_may_span_shards() -> None:
    inputs, labels = ShardBatchSource(counting(5, 1, 10)).next_batch(1, 12)
    np.testing.assert_array_equal(inputs[0], np.arange(12))
    np.testing.assert_array_equal(labels[0], np.arange(1, 13))


def test_reset_goes_back_to_the_first_batch() -> None:
    for source in (ShardBatchSource(counting(100)), SyntheticBatchSource(50, seed=3)):
        first = source.next_batch(2, 10)
        source.next_batch(2, 10)
        source.reset()
        again = source.next_batch(2, 10)
        np.testing.assert_array_equal(first, again)


def test_a_stream_shorter_than_a_row_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="at least 11 tokens for one row, got 10") as caught:
        ShardBatchSource(counting(10)).next_batch(1, 10)
    assert caught.value.field == "seq_len"


@pytest.mark.parametrize(
    ("batch_size", "seq_len", "field"), [(0, 4, "batch_size"), (1, 0, "seq_len")]
)
def test_sizes_below_one_are_refused(batch_size: int, seq_len: int, field: str) -> None:
    for source in (ShardBatchSource(counting(100)), SyntheticBatchSource(9)):
        with pytest.raises(InvalidRequest) as caught:
            source.next_batch(batch_size, seq_len)
        assert caught.value.field == field


def test_synthetic_rows_are_a_pure_function_of_seed_and_index() -> None:
    row = synthetic_row(7, 3, 20, 11)
    np.testing.assert_array_equal(row, synthetic_row(7, 3, 20, 11))
    assert row.dtype == np.uint32
    assert row.shape == (21,)
    assert row.max() < 11
    assert (row != synthetic_row(7, 4, 20, 11)).any()
    assert (row != synthetic_row(8, 3, 20, 11)).any()
    # Frozen: another numpy must draw the same.
    assert synthetic_row(0, 0, 5, 1000).tolist() == [579, 706, 187, 255, 730, 166]


def test_reading_beyond_the_stream_is_an_error() -> None:
    stream = counting(4, 4)
    assert stream.read(3, 3).tolist() == [3, 4, 5]
    assert stream.read(8, 0).tolist() == []
    with pytest.raises(IndexError):
        stream.read(6, 3)


def test_micro_batches_split_a_batch_and_count_their_valid_positions() -> None:
    batch = batch_of([np.arange(start, start + 4, dtype=np.uint32) for start in (0, 10, 20)])
    labels = batch.labels_BS.copy()
    labels[1, 0] = IGNORE_INDEX
    batch = Batch(batch.inputs_BS, labels)
    first, second = batch.micro_batches(2)
    assert first.inputs_BS.tolist() == [[0, 1, 2], [10, 11, 12]]
    assert first.labels_BS.tolist() == [[1, 2, 3], [IGNORE_INDEX, 12, 13]]
    assert (first.num_tokens, first.num_valid) == (6, 5)
    assert second.inputs_BS.tolist() == [[20, 21, 22]]


def test_a_dataset_may_have_a_token_at_the_start_of_each_row(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, np.arange(8), vocab_size=50, bos_policy="row", bos_token_id=49)
    inputs, labels = ShardBatchSource.open(folder).next_batch(3, 4)
    assert inputs.tolist() == [[49, 0, 1, 2], [49, 4, 5, 6], [49, 0, 1, 2]]
    assert labels.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]


def test_a_mask_is_obeyed(tmp_path: Path) -> None:
    mask = [0, 1, 0, 0, 1]
    folder = write_shards(tmp_path, np.arange(5), mask=mask, content="text")
    _, labels = ShardBatchSource.open(folder).next_batch(1, 4)
    assert labels.tolist() == [[1, IGNORE_INDEX, IGNORE_INDEX, 4]]
