"""Log lines: one event each, as key=value; those that cannot be written are lost."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import structlog
from lectern_common.logs import configure_logs
configure_logs()
log = structlog.get_logger()
for say in (log.info, log.warning, log.error, log.critical):
    say("something happened", size=10_000 * "x")
print("went on")
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk always full")
def test_a_log_on_a_full_disk_ends_nothing() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=full, text=True
        )
    assert done.stdout == "went on\n"


def test_a_log_without_a_reader_ends_nothing() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", f"input()\n{PROGRAM}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    child.stderr.close()
    child.stdin.write("\n")
    child.stdin.close()
    assert child.stdout.read() == "went on\n"
    child.stdout.close()
    child.wait()


def test_levels_below_the_chosen_one_are_not_written() -> None:
    code = PROGRAM.replace("configure_logs()", 'configure_logs("error")')
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert [line.split()[1] for line in done.stderr.splitlines()] == [
        "level=error",
        "level=critical",
    ]


def test_a_line_has_no_empty_values_and_shows_mappings_as_json() -> None:
    code = (
        "import structlog; from lectern_common.logs import configure_logs; configure_logs()\n"
        "log = structlog.get_logger()\n"
        "log.info('assembled', teacher=None, memory={'free': 2}, rows=3, ok=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    _, _, line = done.stderr.partition(" ")
    assert line == 'level=info event=assembled memory="{\\"free\\": 2}" rows=3 ok=true\n'


def test_what_somebody_else_named_stays_one_line_and_moves_no_cursor() -> None:
    code = (
        "import structlog; from lectern_common.logs import configure_logs; configure_logs()\n"
        "from pathlib import Path; log = structlog.get_logger()\n"
        "log.info('asked', path='/x\\x1b[2J\\rlevel=error\\u202e', file=Path('a\\nb'), n=1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    _, _, line = done.stderr.partition(" ")
    shown = r'level=info event=asked path="/x\\x1b[2J\\rlevel=error\\u202e" file=a\nb n=1'
    assert line == f"{shown}\n"


def test_a_program_that_configures_no_logs_keeps_its_standard_output() -> None:
    code = (
        "from lectern_common.logs import get_logger; log = get_logger()\n"
        "log.info('answered', tokens=3); log.warning('teacher_gone', address='a:1')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert [line.split(" ", 1)[1] for line in done.stderr.splitlines()] == [
        "level=warning event=teacher_gone address=a:1"
    ]
