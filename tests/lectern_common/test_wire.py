"""Wire arrays: record layout and position masks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lectern_common.errors import InvalidRequest
from lectern_common.wire import pack_mask, top_k_record, unpack_mask


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_a_mask_survives_packing(bits: list[bool]) -> None:
    mask = np.array(bits)
    assert (unpack_mask(pack_mask(mask), len(bits)) == mask).all()


def test_the_first_token_is_the_lowest_bit() -> None:
    assert pack_mask(np.array([True, False, False, False, False, False, False, False, True])) == (
        b"\x01\x01"
    )


@pytest.mark.parametrize(
    ("data", "word"), [(b"\x01\x00", "need 1"), (b"", "need 1"), (b"\x08", "beyond")]
)
def test_a_mask_of_another_length_is_refused(data: bytes, word: str) -> None:
    with pytest.raises(InvalidRequest, match=word) as caught:
        unpack_mask(data, 3)
    assert caught.value.field == "position_mask"


@pytest.mark.parametrize("k", [1, 2, 64])
def test_a_top_k_record_is_8k_plus_8_packed_bytes(k: int) -> None:
    record = top_k_record(k)
    assert record.itemsize == 8 * k + 8
    row = np.zeros(1, record)
    row["logits"][0, -1] = 1.0
    row["ids"][0, 0] = 7
    row["log_rest_t"] = 2.0
    row["log_normalizer_t"] = 3.0
    words = np.frombuffer(row.tobytes(), "<u4")
    floats = np.frombuffer(row.tobytes(), "<f4")
    assert floats[k - 1] == 1.0
    assert words[k] == 7
    assert (floats[2 * k], floats[2 * k + 1]) == (2.0, 3.0)
