"""Each rule at its limit; tests/lectern/commands/test_rules.py checks the messages."""

from pathlib import Path

import pytest

from lectern_common.checks import rules
from lectern_common.errors import CorruptData, Incompatible, InvalidSpec

HERE = Path("data/text")


def test_the_smallest_sufficient_amount_is_accepted() -> None:
    rules.require_row(HERE, 9, 8)
    rules.require_document_starts(HERE, are_known=True, needs_them=True)
    rules.require_document_starts(HERE, are_known=False, needs_them=False)
    rules.require_own_tokenizer(HERE / "tokenizer.json", "a", "a")
    rules.require_one_tokenizer("text", "a", "other", "a")
    rules.require_step(4, 4)
    rules.require_positions(8, 8)
    rules.require_positions(8, None)
    rules.require_layers_to_leave_out(2)


def test_one_less_is_refused() -> None:
    for refused in (
        lambda: rules.require_row(HERE, 8, 8),
        lambda: rules.require_document_starts(HERE, are_known=False, needs_them=True),
        lambda: rules.require_step(3, 4),
        lambda: rules.require_layers_to_leave_out(1),
        lambda: rules.rows_held_out(1, 0.001),
    ):
        with pytest.raises(InvalidSpec):
            refused()
    for refused in (
        lambda: rules.require_one_tokenizer("text", "a", "other", "b"),
        lambda: rules.require_positions(9, 8),
    ):
        with pytest.raises(Incompatible):
            refused()
    with pytest.raises(CorruptData):
        rules.require_own_tokenizer(HERE / "tokenizer.json", "a", "b")


@pytest.mark.parametrize(
    ("rows", "fraction", "held_out"), [(2, 0.001, 1), (50, 0.1, 5), (249, 0.1, 25), (3, 0.5, 2)]
)
def test_a_share_of_the_rows_but_at_least_one_is_held_out(
    rows: int, fraction: float, held_out: int
) -> None:
    assert rules.rows_held_out(rows, fraction) == held_out
