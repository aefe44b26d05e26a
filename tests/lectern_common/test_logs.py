"""Log lines: one event each, as key=value."""

import subprocess
import sys


def test_a_line_has_no_empty_values_and_shows_mappings_as_json() -> None:
    code = (
        "import structlog; from lectern_common.logs import configure_logs; configure_logs()\n"
        "log = structlog.get_logger()\n"
        "log.info('assembled', teacher=None, memory={'free': 2}, rows=3, ok=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    _, _, line = done.stderr.partition(" ")
    assert line == 'level=info event=assembled memory="{\\"free\\": 2}" rows=3 ok=true\n'
