"""Token maps: their hash, and the first ids that differ."""

import pytest

from lectern_common.errors import TokenizerMismatch
from lectern_common.tokens.tokenizer_map import (
    first_differences,
    require_same_tokens,
    tokenizer_sha256,
)

MAP = {"a": 0, "b": 1, "c": 2}


def test_the_hash_depends_on_the_map_and_not_on_its_order() -> None:
    assert tokenizer_sha256(MAP) == tokenizer_sha256(dict(reversed(MAP.items())))
    assert tokenizer_sha256(MAP) != tokenizer_sha256({"b": 0, "a": 1, "c": 2})
    assert tokenizer_sha256(MAP) != tokenizer_sha256({**MAP, "d": 3})


def test_two_maps_with_swapped_ids_name_the_first_that_differ() -> None:
    swapped = {"b": 0, "a": 1, "c": 2}
    assert first_differences(MAP, swapped) == [(0, "a", "b"), (1, "b", "a")]
    with pytest.raises(TokenizerMismatch, match='id 0: teacher "a", student "b"'):
        require_same_tokens(MAP, swapped)


def test_a_missing_token_is_a_difference() -> None:
    assert first_differences(MAP, {"a": 0, "b": 1}) == [(2, "c", None)]
    assert first_differences({}, {"x": 9}, limit=1) == [(9, None, "x")]


def test_equal_maps_pass() -> None:
    require_same_tokens(MAP, dict(MAP))
    assert first_differences(MAP, MAP) == []
