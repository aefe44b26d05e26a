"""`make faults`: tries every fault of the table on real processes over real sockets.

    make faults                          the whole table; exit status 1 on any miss
    make faults ARGS='T5 T6 --json'      some rows, as JSON
    make faults ARGS='S'                 the trainer's rows; O: rollouts, R: records, C: control,
                                         T: teacher, L: launchers
    make faults ARGS='--sabotage T5'     T5 without its protection: it must fail

Prints one line per row: id, survived/tries, figure; or why it cannot be tried here. Time limits
are judged here, never in the tests.
"""

import argparse
import json
import sys
from collections.abc import Mapping

from faults.row import Row
from faults.runner import run_rows
from faults.table import ROWS


def main(argv: list[str] | None = None, table: Mapping[str, Row] = ROWS) -> int:
    """Returns the exit status: 0; 1 if a row was missed; 2 if a sabotaged check broke."""
    parser = argparse.ArgumentParser(prog="make faults")
    parser.add_argument(
        "rows",
        nargs="*",
        metavar="ROW",
        help="a row such as T5, or T for all of the teacher's; default: all",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON array at the end")
    parser.add_argument("--quick", action="store_true", help="fewer tries, for development")
    parser.add_argument(
        "--sabotage", metavar="ROW", help="try this row with its protection switched off"
    )
    options = parser.parse_args(argv)
    asked = [row_id for name in options.rows for row_id in _named(name, table) or [name]]
    for name in [*asked, *([options.sabotage] if options.sabotage else [])]:
        if name not in table:
            parser.error(f"no row {name}; the rows are {', '.join(table)}")
    if options.sabotage is not None and asked not in ([], [options.sabotage]):
        parser.error("--sabotage tries only its own row; leave out the others")

    names = [options.sabotage] if options.sabotage else asked or list(table)
    if options.sabotage and not options.json:
        print(f"{options.sabotage} without its protection: {table[options.sabotage].protection}")
    results = []
    for result in run_rows(
        [table[name] for name in names], quick=options.quick, sabotage=options.sabotage
    ):
        results.append(result)
        if not options.json:
            print(result.line(), flush=True)
    if options.json:
        json.dump([result.as_json() for result in results], sys.stdout, indent=2)
        print()
    missed = [result.row.id for result in results if not result.passed and result.skipped is None]
    if options.sabotage and any(result.broke or result.skipped for result in results):
        print(
            "the check itself broke, or was skipped, which says nothing about the protection",
            file=sys.stderr,
        )
        return 2
    if missed:
        print(f"missed: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


def _named(name: str, table: Mapping[str, Row]) -> list[str]:
    """Returns the rows of a letter; [] if `name` is not one."""
    return [row_id for row_id in table if name.isalpha() and row_id.rstrip("0123456789") == name]


if __name__ == "__main__":
    sys.exit(main())
