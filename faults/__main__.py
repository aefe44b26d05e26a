"""`make faults`: what must survive what, tried on real processes over real sockets.

    make faults                          the whole table; exit status 1 on any miss
    make faults ARGS='T5 T6 --json'      some rows, for programs
    make faults ARGS='S'                 those of the trainer; T: those of the teacher
    make faults ARGS='--sabotage T5'     T5 without its protection: it must fail

One line a row: id, tries, survived, figure. Time limits are judged here, never in the tests.
"""

import argparse
import json
import sys
from collections.abc import Mapping

from faults.row import Row
from faults.runner import run_rows
from faults.table import ROWS


def main(argv: list[str] | None = None, table: Mapping[str, Row] = ROWS) -> int:
    """Returns the exit status: 0; 1 where a row was missed; 2 where a sabotaged one broke."""
    parser = argparse.ArgumentParser(prog="make faults")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="such as T5, or T; default: all")
    parser.add_argument("--json", action="store_true", help="print one JSON array at the end")
    parser.add_argument("--quick", action="store_true", help="fewer tries, for development")
    parser.add_argument(
        "--sabotage", metavar="ROW", help="switch off what protects this row, and try it"
    )
    options = parser.parse_args(argv)
    asked = [row_id for name in options.rows for row_id in _named(name, table) or [name]]
    for name in [*asked, *([options.sabotage] if options.sabotage else [])]:
        if name not in table:
            parser.error(f"there is no row {name}; there are {', '.join(table)}")
    if options.sabotage is not None and asked not in ([], [options.sabotage]):
        parser.error("--sabotage tries its own row alone; leave the others out")

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
    missed = [result.row.id for result in results if not result.passed]
    if options.sabotage and any(result.broke for result in results):
        print("the check broke, which says nothing of the protection", file=sys.stderr)
        return 2
    if missed:
        print(f"missed: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


def _named(name: str, table: Mapping[str, Row]) -> list[str]:
    """Returns the rows of a letter, [] where it is none."""
    return [row_id for row_id in table if name.isalpha() and row_id.rstrip("0123456789") == name]


if __name__ == "__main__":
    sys.exit(main())
