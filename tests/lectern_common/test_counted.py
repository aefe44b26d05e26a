"""One is not many."""

from lectern_common.counted import counted


def test_a_number_takes_its_noun() -> None:
    assert [counted(number, "row") for number in (0, 1, 2, 1200)] == [
        "0 rows",
        "1 row",
        "2 rows",
        "1,200 rows",
    ]
