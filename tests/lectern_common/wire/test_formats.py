"""Representations, record layout and position masks."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lectern_common.errors import InvalidRequest, RepresentationNotOffered
from lectern_common.wire.formats import (
    FORMATS,
    Representation,
    RepresentationName,
    pack_mask,
    pack_sampled,
    sampled_record,
    top_k_record,
    unpack_mask,
    unpack_sampled,
)
from protos import teacher_pb2 as pb

NUMBERS = {"top_k": 3, "num_draws": 9, "seed": 2**64 - 1}


def test_every_representation_in_the_proto_has_one_entry() -> None:
    assert get_args(RepresentationName) == tuple(FORMATS)
    contract = {number for number in pb.RepresentationKind.values() if number}
    assert {form.enum for form in FORMATS.values()} == contract


@pytest.mark.parametrize("name", FORMATS)
def test_a_representation_survives_the_wire(name: str) -> None:
    taken = {key: NUMBERS[key] for key in FORMATS[name].parameters}
    asked = Representation(name, **taken)
    assert Representation.of_message(asked.message()) == asked
    for key in NUMBERS.keys() - taken.keys():
        assert getattr(asked, key) is None
        stray = pb.Representation(kind=FORMATS[name].enum, **{key: 3})
        with pytest.raises(InvalidRequest, match=f"{key} has no effect") as caught:
            Representation.of_message(stray)
        assert caught.value.field == f"representation.{key}"


def test_an_unknown_representation_is_refused() -> None:
    with pytest.raises(RepresentationNotOffered, match="logprobs is not one of dense, hidden"):
        Representation("logprobs")
    with pytest.raises(InvalidRequest, match="kind 9 is not one of dense, hidden") as caught:
        Representation.of_message(pb.Representation(kind=9))  # type: ignore[arg-type]
    assert caught.value.field == "representation.kind"


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


def test_a_sampled_record_is_8_bytes_with_the_count_above_the_id() -> None:
    assert sampled_record().itemsize == 8
    packed = pack_sampled(np.array([7]), np.array([3]), np.array([-1.0])).tobytes()
    assert packed == bytes([7, 0, 0, 2]) + np.float32(-1.0).tobytes()


@given(
    st.lists(
        st.tuples(st.integers(0, 2**24 - 1), st.integers(1, 256), st.floats(-90, 0, width=32)),
        max_size=20,
    )
)
def test_sampled_records_survive_packing(rows: list[tuple[int, int, float]]) -> None:
    columns = [np.array([row[index] for row in rows]) for index in range(3)]
    back = unpack_sampled(pack_sampled(columns[0], columns[1], columns[2]))
    assert [column.tolist() for column in back] == [column.tolist() for column in columns]


@pytest.mark.parametrize(
    ("number", "count", "field"),
    [
        (2**24, 1, "vocab_size"),
        (-1, 1, "vocab_size"),
        (0, 0, "representation.num_draws"),
        (0, 257, "representation.num_draws"),
    ],
)
def test_values_that_do_not_fit_a_sampled_record_are_refused(
    number: int, count: int, field: str
) -> None:
    with pytest.raises(InvalidRequest, match="sampled answers hold") as caught:
        pack_sampled(np.array([0, number]), np.array([1, count]), np.zeros(2))
    assert caught.value.field == field
