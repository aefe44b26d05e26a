"""One is not many."""

from lectern_common.counted import counted, duration


def test_a_number_takes_its_noun() -> None:
    assert [counted(number, "row") for number in (0, 1, 2, 1200)] == [
        "0 rows",
        "1 row",
        "2 rows",
        "1,200 rows",
    ]


def test_a_time_is_in_the_unit_of_its_size() -> None:
    assert [duration(hours) for hours in (0.001, 0.5, 3.42, 100)] == [
        "4 s",
        "30 min",
        "3.4 h",
        "4.2 days",
    ]
