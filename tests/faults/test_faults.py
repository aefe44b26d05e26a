"""How `make faults` judges. Its rows judge times, so only one without a time limit runs here."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from faults.__main__ import main
from faults.row import Row, Tally
from faults.stage import Stage
from faults.table import ROWS
from faults.teacher import sabotage

ROOT = Path(__file__).parent.parent.parent


def row(check: Callable[[Stage], Tally], row_id: str = "X1") -> dict[str, Row]:
    return {row_id: Row(row_id, "something happens", "its protection", check)}


def survived(_stage: Stage) -> Tally:
    return Tally(tries=3, survived=3, figure="in 5 ms at most")


def missed(_stage: Stage) -> Tally:
    tally = Tally(figure="in 5 ms at most")
    tally.count(True, "")
    tally.count(False, "the second one died")
    return tally


def broken(_stage: Stage) -> Tally:
    raise RuntimeError("no such thing")


def kept_by_its_protection(stage: Stage) -> Tally:
    return missed(stage) if stage.sabotaged else survived(stage)


class Late:
    """A row that is late `times` times, then in time."""

    def __init__(self, times: int) -> None:
        self.left, self.calls = times, 0

    def __call__(self, stage: Stage) -> Tally:
        assert list(stage.folder.iterdir()) == []  # only this attempt's
        self.calls += 1
        self.left -= 1
        tally = survived(stage)
        tally.require_within(2.0 if self.left >= 0 else 0.5, 1.0, "an answer")
        return tally


def test_a_survived_row_prints_one_line_and_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], row(survived)) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split() == ["X1", "ok", "3/3", "in", "5", "ms", "at", "most"]


def test_one_miss_exits_1_and_names_what_was_missed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], {**row(survived), **row(missed, "X2")}) == 1
    out, errors = capsys.readouterr()
    first, second, why = out.splitlines()
    assert first.startswith("X1   ok")
    assert second.split()[:3] == ["X2", "MISS", "1/2"]
    assert "at most" not in second  # the figure is of what was survived
    assert why.strip() == "the second one died"
    assert "missed: X2" in errors


def test_a_row_that_cannot_be_tried_here_says_why_and_is_no_miss(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = {"X1": Row("X1", "something happens", "its protection", missed, lambda: "no such peer")}
    assert main([], table) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split()[:2] == ["X1", "skip"]
    assert line.endswith("something happens: no such peer")
    assert main(["--sabotage", "X1"], table) == 2


def test_only_the_named_rows_are_tried(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["X1"], {**row(survived), **row(missed, "X2")}) == 0
    assert "X2" not in capsys.readouterr().out


def test_a_letter_names_all_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    table = {**row(survived, "X1"), **row(survived, "X20"), **row(missed, "Y1")}
    assert main(["X"], table) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["X1", "X20"]


def test_several_tries_can_be_counted_at_once() -> None:
    tally = Tally()
    assert tally.count(True, "", 3)
    assert tally.passed
    assert not tally.count(False, "one of two died", 2)
    assert (tally.tries, tally.survived, tally.misses) == (5, 3, ["one of two died"])


@pytest.mark.parametrize(
    "tally",
    [
        Tally(),
        Tally(tries=2, survived=1),
        Tally(tries=2, survived=2, misses=["memory grew"]),
        Tally(tries=2, survived=2, late=["it took long"]),
    ],
    ids=["never tried", "one died", "a miss of the whole", "late"],
)
def test_a_tally_with_any_miss_does_not_pass(tally: Tally) -> None:
    assert not tally.passed
    assert Tally(tries=2, survived=2).passed


def test_json_has_one_object_per_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"], {**row(survived), **row(missed, "X2")}) == 1
    first, second = json.loads(capsys.readouterr().out)
    assert first.pop("seconds") >= 0
    assert first == {
        "id": "X1",
        "title": "something happens",
        "tries": 3,
        "survived": 3,
        "figure": "in 5 ms at most",
        "passed": True,
        "misses": [],
        "attempts": 1,
        "broke": False,
        "skipped": None,
    }
    assert (second["id"], second["passed"]) == ("X2", False)
    assert second["misses"] == ["the second one died"]


def test_a_row_that_is_only_late_is_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    late = Late(2)
    assert main([], row(late)) == 0
    assert late.calls == 3
    assert "(attempt 3)" in capsys.readouterr().out


def test_a_row_that_is_always_late_is_missed(capsys: pytest.CaptureFixture[str]) -> None:
    late = Late(3)
    assert main([], row(late)) == 1
    assert late.calls == 3
    assert "an answer took 2000 ms; it may take 1000" in capsys.readouterr().out


def test_without_its_protection_a_late_row_gets_no_second_chance() -> None:
    late = Late(1)
    assert main(["--sabotage", "X1"], row(late)) == 1
    assert late.calls == 1


def test_a_row_with_another_miss_gets_no_second_chance() -> None:
    calls = []

    def late_and_wrong(stage: Stage) -> Tally:
        calls.append(stage)
        tally = missed(stage)
        tally.require_within(2.0, 1.0, "an answer")
        return tally

    assert main([], row(late_and_wrong)) == 1
    assert len(calls) == 1


def test_a_broken_check_is_a_miss(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], row(broken)) == 1
    assert "RuntimeError: no such thing" in capsys.readouterr().out


def test_a_broken_check_says_nothing_about_the_protection() -> None:
    assert main(["--sabotage", "X1"], row(broken)) == 2


def test_sabotage_reaches_only_its_row() -> None:
    table = row(kept_by_its_protection)
    assert main([], table) == 0
    assert main(["--sabotage", "X1"], table) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--sabotage", "T99"], "no row T99"),
        (["T99"], "no row T99"),
        (["T5", "--sabotage", "T6"], "leave out the others"),
    ],
)
def test_invalid_arguments_are_refused(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_rows_are_in_order_and_each_has_its_own_sabotage() -> None:
    last = {"S": 14, "O": 8, "R": 7, "C": 28, "T": 22, "L": 2}
    numbers = {side: range(1, number + 1) for side, number in last.items()}
    ids = [f"{side}{number}" for side, each in numbers.items() for number in each]
    assert list(ROWS) == ids
    assert sabotage.ROWS.keys() == set(ids)
    assert len(set(sabotage.ROWS.values())) == len(ids)


OF_THE_CLIENT = ["T1", "T2", "T3", "T22"]
CHANGED_IN = {
    "teacher": [row for row in ROWS if row[0] == "T" and row not in OF_THE_CLIENT],
    "trainer": [
        *(*OF_THE_CLIENT, "T4"),
        *(row for row in ROWS if row[0] in "SOR" and row not in ("S9", "S13")),
    ],
    "control": [row for row in ROWS if row[0] == "C"],
    "lectern": ["S9", "S13"],
}


@pytest.mark.long
@pytest.mark.parametrize("program", list(CHANGED_IN))
def test_every_sabotage_and_fault_changes_something_that_exists(program: str) -> None:
    code = (
        "from faults import launcher, replacing\n"
        "from faults.control import injections as control_injections, stand_in\n"
        "from faults.control import sabotage as control_sabotage\n"
        "from faults.teacher import injections, sabotage\n"
        "from faults.trainer import injections as trainer_injections\n"
        "from faults.record import sabotage as record_sabotage\n"
        "from faults.rollouts import injections as rollout_injections\n"
        "from faults.rollouts import sabotage as rollout_sabotage\n"
        "from faults.trainer import sabotage as trainer_sabotage\n"
        "put, done = replacing.put, []\n"
        "def counted(owner, name, value):\n"
        "    done.append(name)\n"
        "    put(owner, name, value)\n"
        "sabotage.put = injections.put = counted\n"
        "trainer_sabotage.put = trainer_injections.put = record_sabotage.put = counted\n"
        "rollout_sabotage.put = rollout_injections.put = counted\n"
        "control_sabotage.put = control_injections.put = stand_in.put = counted\n"
        f"for row in {CHANGED_IN[program]}:\n"
        "    done.clear()\n"
        f"    sabotage.ROWS[row]({program!r})\n"
        "    if not done: raise SystemExit(f'{row} changes nothing')\n"
        f"for fault, inject in launcher.FAULTS[{program!r}].items():\n"
        # Two are of the process itself.
        "    if fault in ('descriptors', 'environment'): continue\n"
        "    done.clear()\n"
        "    inject('loss:1' if fault == 'not-finite' else '1')\n"
        "    if not done: raise SystemExit(f'{fault} changes nothing')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_real_row_passes_and_fails_without_its_protection(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """T10: a reply over the limit, on a real server over a real socket."""
    assert main(["T10", "--quick"]) == 0
    assert main(["--sabotage", "T10", "--quick"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("T10  ok           10/10")
    assert "forwards" in out[3]  # it was computed
