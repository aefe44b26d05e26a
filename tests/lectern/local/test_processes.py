import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from lectern.local.processes import (
    Child,
    LogLines,
    interrupts_held,
    printable,
    signals_interrupt,
    tail,
    wait_until,
)

DEADLINE_SECONDS = 20.0


def python(program: str, log: Path) -> Child:
    return Child("helper", [sys.executable, "-c", program], log, {})


def wait_for_words(child: Child, words: str) -> None:
    assert wait_until(lambda: words in child.tail(), DEADLINE_SECONDS), child.tail()


def test_a_child_lives_in_a_session_of_its_own(tmp_path):
    child = python("import time; print('up'); time.sleep(60)", tmp_path / "log")
    try:
        wait_for_words(child, "up")
        assert os.getsid(child.process.pid) == child.process.pid != os.getsid(0)
    finally:
        child.kill()
    assert not child.is_alive


def test_a_child_that_hears_our_end_notices_that_its_parent_was_killed(tmp_path):
    program = "import sys; print('up', flush=True); sys.stdin.read(); print('parent is gone')"
    parent = f"""
import sys, time
from pathlib import Path
from lectern.local.processes import Child
child = Child("helper", [sys.executable, "-c", {program!r}], Path({str(tmp_path / "log")!r}), {{}},
    hears_our_end=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", parent]) as process:
        assert wait_until(lambda: "up" in tail(tmp_path / "log", 5), DEADLINE_SECONDS)
        process.kill()
    assert wait_until(lambda: "parent is gone" in tail(tmp_path / "log", 5), DEADLINE_SECONDS)


def test_stop_sends_sigterm_first(tmp_path):
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "print('up')\n"
        "while True: time.sleep(0.01)"
    )
    child = python(program, tmp_path / "log")
    wait_for_words(child, "up")

    assert child.stop(grace_seconds=DEADLINE_SECONDS) == 7


def test_a_child_that_ignores_sigterm_is_killed_with_its_own_children(tmp_path):
    program = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('up', child.pid, 'end')\n"
        "time.sleep(60)"
    )
    child = python(program, tmp_path / "log")
    wait_for_words(child, "end")
    grandchild = psutil.Process(int(child.tail().split()[1]))

    assert child.stop(grace_seconds=0.05) == -signal.SIGKILL
    assert wait_until(
        lambda: not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE,
        DEADLINE_SECONDS,
    )


def test_a_death_is_reported_with_the_end_of_the_log_and_the_exit_status(tmp_path):
    (tmp_path / "log").write_text("words of an earlier life\n")
    child = python("print('no such model'); raise SystemExit(3)", tmp_path / "log")

    error = child.death()

    assert "helper ended with exit status 3" in str(error)
    assert "no such model" in str(error)
    assert "earlier life" not in str(error)
    assert error.exit_code == 3


def test_a_death_by_signal_names_it(tmp_path):
    child = python("import os; os.kill(os.getpid(), 9)", tmp_path / "log")

    error = child.death()

    assert "ended by signal 9" in str(error)
    assert error.exit_code == 1


def test_children_import_nothing_from_the_folder_they_are_started_in(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')\n")
    monkeypatch.chdir(tmp_path)
    child = Child("helper", [sys.executable, "-m", "json.tool", "--help"], tmp_path / "log", {})

    assert child.process.wait(DEADLINE_SECONDS) == 0


def test_log_lines_are_returned_once_and_only_when_complete(tmp_path):
    log = tmp_path / "log"
    reader = LogLines(log)
    assert reader.new() == []

    log.write_bytes(b"first\nsec")
    assert reader.new() == ["first"]
    with log.open("ab") as file:
        file.write(b"ond\nthird\n")
    assert reader.new() == ["second", "third"]
    assert reader.new() == []


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"plain", "plain"),
        (b"\x1b[2Jgone", "?[2Jgone"),
        (b"a\rb\x00", "a?b?"),
        (b"\xff", chr(0xFFFD)),
        (b"x" * 5000, "x" * 4000 + " ... (cut)"),
    ],
)
def test_escape_sequences_of_a_log_do_not_reach_the_terminal(line, shown):
    assert printable(line) == shown


def test_tail_reads_only_the_end(tmp_path):
    log = tmp_path / "log"
    log.write_text("".join(f"{number}\n" for number in range(100_000)))

    assert tail(log, 2) == "99998\n99999"
    assert tail(tmp_path / "none", 2) == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_interrupt_inside_the_block_and_are_restored_after(number):
    before = signal.getsignal(number)

    with pytest.raises(KeyboardInterrupt), signals_interrupt():
        os.kill(os.getpid(), number)
        wait_until(lambda: False, DEADLINE_SECONDS)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupts_wait_for_the_end_of_the_block(number):
    before = signal.getsignal(number)
    reached = False

    with pytest.raises(KeyboardInterrupt), signals_interrupt(), interrupts_held():
        os.kill(os.getpid(), number)
        reached = True
    assert reached
    assert signal.getsignal(number) is before
