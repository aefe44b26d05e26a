"""Series against a plain pass over the file: every bucket's numbers are those of its lines."""

import bisect
import json
import math
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.reading.series import chunk, index
from control_plane.reading.series.index import Index
from control_plane.reading.series.query import EVERY_STEP, Steps, series_of
from lectern_common.json_lines import append_json_line, keep_lines_before, step_of


class Folder:
    """A metrics.jsonl with its index."""

    def __init__(self, path: Path) -> None:
        self.path = path / "metrics.jsonl"
        self.index_path = path / "metrics.index"
        self.index = Index(self.path, self.index_path)

    def write(self, first: int, last: int, seed: int = 0, every: int = 100) -> None:
        """Appends the lines of these steps, as a trainer does."""
        draw = random.Random(f"{seed} {first}")  # noqa: S311
        with self.path.open("a") as file:
            for step in range(first, last):
                line: dict[str, Any] = {
                    "step": step,
                    "time": 1e9 + step / 8,
                    "progress/tokens": 7 * step,
                }
                line |= {"progress/seconds": step / 4, "loss/total": draw.gauss(2, 1)}
                if draw.random() < 0.01:
                    line |= {"loss/total": None, "non_finite": ["loss/total"]}
                if step % every == 0:
                    line["loss/val"] = draw.random()
                if draw.random() < 0.3:
                    line["now/and/then"] = draw.randrange(10)
                file.write(json.dumps(line) + "\n")

    def again(self) -> "Folder":
        """Another process, which knows only what the files say."""
        return Folder(self.path.parent)

    def check(self, max_points: int = 50, within: Steps = EVERY_STEP, is_merged: bool = False):
        """Compares the answer with a plain pass over the file."""
        answer = series_of(self.index.up_to_date(), self.path, max_points=max_points, within=within)
        lines = [json.loads(line) for line in self.path.read_text().splitlines()]
        lines = [line for line in lines if within.first <= line["step"] <= within.last]
        for key, buckets in answer.series.items():
            logged = [(line, line[key]) for line in lines if key in line]
            assert len(buckets) <= max_points
            if len(logged) <= max_points and not is_merged:
                assert len(buckets) == len(logged), key
            assert sum(buckets["count"] + buckets["non_finite"]) == len(logged)
            steps = [line["step"] for line, _ in logged]
            for bucket in buckets:
                first = bisect.bisect_left(steps, bucket["first_step"])
                after = bisect.bisect_right(steps, bucket["step"])
                assert_equals(bucket, [value for _, value in logged[first:after]])
                last = lines[bisect.bisect_left(lines, bucket["step"], key=step_of)]
                x = (last["progress/tokens"], last["progress/seconds"], last["time"])
                assert (bucket["tokens"], bucket["seconds"], bucket["time"]) == x
            assert sorted(buckets["step"]) == list(buckets["step"])
            assert all(buckets["first_step"][1:] > buckets["step"][:-1])
        return answer


def assert_equals(bucket, inside) -> None:
    finite = [value for value in inside if value is not None]
    assert (bucket["count"], bucket["non_finite"]) == (len(finite), len(inside) - len(finite))
    if finite:
        assert (bucket["min"], bucket["max"]) == (min(finite), max(finite))
        mean = math.fsum(value / len(finite) for value in finite)
        assert bucket["mean"] == pytest.approx(mean, rel=1e-9, abs=1e-12)
    else:
        assert math.isnan(bucket["mean"])
    if len(inside) == 1 and finite:
        assert bucket["min"] == bucket["max"] == bucket["mean"]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.mark.parametrize("max_points", [16, 500])
@pytest.mark.parametrize("num_lines", [1, 63, 64, 1023, 1024, 1025, 9000])
def test_buckets_equal_a_plain_pass(folder, num_lines, max_points):
    folder.write(0, num_lines)
    folder.check(max_points)
    folder.again().check(max_points)


@pytest.mark.parametrize(
    "within", [(0, 0), (100, 8000), (8191, 8192), (8900, 10**9), (10**9, 2**60)]
)
def test_a_range_that_cuts_through_leaves_is_exact(folder, within):
    folder.write(0, 9000)
    folder.check(20, Steps(*within))


def test_evaluations_are_all_there_until_they_are_too_many(folder):
    folder.write(0, 30_000, every=70)
    answer = folder.check(429)
    assert len(answer.series["loss/val"]) == 429
    assert answer.series["loss/val"]["count"].tolist() == [1] * 429


changes = st.lists(
    st.one_of(
        st.tuples(st.just("grow"), st.integers(1, 900)),
        st.tuples(st.just("resume"), st.floats(0, 1)),
        st.tuples(st.just("restart"), st.just(0)),
        st.tuples(st.just("torn"), st.just(0)),
        st.tuples(st.just("look"), st.integers(16, 60)),
        st.tuples(st.just("damage"), st.floats(0, 1)),
    ),
    min_size=1,
    max_size=14,
)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 64 lines, and no more than six of them, so that short files merge often."""
    for module in (chunk, index):
        monkeypatch.setattr(module, "CHUNK_LINES", 64)
    monkeypatch.setattr(chunk, "LEAF_LINES", 4)
    monkeypatch.setattr(chunk, "SPARSE", 1)
    monkeypatch.setattr(index, "MAX_CHUNKS", 6)
    monkeypatch.setattr(index, "MAX_CHUNKS_IN_MEMORY", 3)


def test_any_life_of_a_file_gives_the_numbers_of_a_plain_pass(small_chunks):
    @settings(deadline=None, max_examples=40)
    @given(changes)
    def check(drawn) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder, step = Folder(Path(name)), 0
            for number, (kind, amount) in enumerate(drawn):
                if kind == "grow":
                    folder.write(step, step + amount, seed=number)
                    step += amount
                elif kind == "resume":
                    step = int(step * amount)
                    keep_lines_before(folder.path, step)
                elif kind == "restart":
                    folder = folder.again()
                elif kind == "torn":
                    folder.path.open("a").close()
                    folder.index.up_to_date()
                    with folder.path.open("a") as file:
                        file.write('{"step": 1, "tor')
                    folder.index.up_to_date()
                    keep_lines_before(folder.path, step)
                elif kind == "damage":
                    if not folder.index_path.exists():
                        continue
                    data = bytearray(folder.index_path.read_bytes())
                    data[int(amount * (len(data) - 1))] ^= 1
                    folder.index_path.write_bytes(data)
                    folder = folder.again()
                elif folder.path.exists():
                    folder.check(amount, is_merged=True)
            if folder.path.exists():
                folder.check(30, is_merged=True)
                folder.again().check(30, is_merged=True)

    check()


def test_a_mean_of_huge_numbers_does_not_overflow(folder):
    for step in range(3000):
        append_json_line(folder.path, {"step": step, "x": 1.7e308, "y": -5e-324})
    series = series_of(folder.index.up_to_date(), folder.path, max_points=16).series
    assert series["x"]["mean"].tolist() == [1.7e308] * 16
    assert series["y"]["mean"].tolist() == [-5e-324] * 16


def test_what_was_asked_last_of_an_unchanged_file_is_not_computed_again(tmp_path):
    folder = Folder(tmp_path)
    folder.write(0, 3000)

    def asked(max_points: int = 50, within: Steps = EVERY_STEP):
        now = folder.index.up_to_date()
        return series_of(now, folder.path, ["loss/total"], max_points=max_points, within=within)

    first = asked()
    assert asked() is first
    others = [asked(max_points=count) for count in range(51, 54)] + [asked(within=Steps(9, 99))]
    assert all(len(one.series["loss/total"]) != len(first.series["loss/total"]) for one in others)
    assert asked() is not first, "four are kept"
    again = asked()
    folder.write(3000, 3100)
    assert asked() is not again
    assert asked().last_step == 3099
    folder.check()
