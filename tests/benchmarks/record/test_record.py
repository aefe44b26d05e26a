"""The benchmark of records goes through on tiny shapes."""

import pytest

from benchmarks.record import formats, runs


def test_each_format_is_measured_with_its_goals():
    rows = list(formats.measure([formats.Shape(96, 32, 2.0)]))
    assert [row["format"] for row in rows] == list(formats.FORMATS)
    assert [row["bytes_per_token"] for row in rows[:2]] == [64, 33]
    assert rows[4]["kl_nats"] is None
    assert rows[4]["bytes_per_distinct_id"] <= 5.5
    for row in rows:
        assert row["gradient_error"] >= 0
        for figure in row["goals"]:
            assert figure in row


@pytest.mark.long
def test_records_are_made_read_and_learnt_from():
    tiny = runs.Sizes(
        vocab_size=96,
        teacher=(32, 1, 4, 48),
        student=(32, 1, 4, 48),
        sequences=2,
        seq_len=16,
        steps=2,
        pairs=1,
    )
    rows = list(runs.measure(tiny))
    assert [row["figure"] for row in rows] == [
        f"{what}, {way}" for way in runs.WAYS for what in ("make", "read", "run")
    ]
    for row in rows:
        assert row.get("speed_ratio", 1) > 0
        assert row.get("tokens_per_second", 1) > 0
