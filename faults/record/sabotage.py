"""Switches off the protection of each record row; see faults/teacher/sabotage.py."""

from collections.abc import Callable
from io import BufferedWriter
from pathlib import Path
from typing import Any

from faults.replacing import put


def _what_is_left_is_not_cut(program: str) -> None:
    if program == "trainer":
        from student_trainer.record import writer

        def as_it_is(path: Path, _end: int) -> BufferedWriter:
            return path.open("ab")

        put(writer, "_appending", as_it_is)


def _no_room_is_any_error(program: str) -> None:
    if program == "trainer":
        from student_trainer.journal import disk_full
        from student_trainer.run import life
        from student_trainer.stages import life as life_of_tasks

        def never(_error: BaseException) -> bool:
            return False

        for module in (disk_full, life, life_of_tasks):
            put(module, "is_disk_full", never)


def _rows_are_believed(program: str) -> None:
    if program == "trainer":
        from lectern_common.teacher.record.reader import PartReader

        def unchecked(self: PartReader, entry: Any, _ids: object) -> Any:
            first = int(entry["first_byte"])
            return self._rows[first : first + int(entry["num_bytes"])], self._mask(entry)

        put(PartReader, "_data", unchecked)


def _any_teacher_goes_on(program: str) -> None:
    if program == "trainer":
        from student_trainer.teacher import recorded

        def trusting(*_: object) -> None:
            return

        put(recorded, "require_same_teacher", trusting)


def _sizes_are_believed(program: str) -> None:
    if program == "trainer":
        from lectern_common.teacher.record import reader

        def trusting(*_: object) -> None:
            return

        put(reader, "require_sizes", trusting)


def _a_recorder_gives_up_at_once(program: str) -> None:
    if program == "trainer":
        from student_trainer.teacher.outage import Outage

        original = Outage.__init__

        def without(self: Outage, _budget_seconds: float, *rest: Any, **named: Any) -> None:
            original(self, 0.0, *rest, **named)

        put(Outage, "__init__", without)


def _what_is_kept_is_saved_at_the_end(program: str) -> None:
    if program == "trainer":
        from student_trainer.record.kept import Kept

        def later(_self: Kept) -> None:
            return

        put(Kept, "save", later)


ROWS: dict[str, Callable[[str], None]] = {
    "R1": _what_is_left_is_not_cut,
    "R2": _no_room_is_any_error,
    "R3": _rows_are_believed,
    "R4": _any_teacher_goes_on,
    "R5": _sizes_are_believed,
    "R6": _a_recorder_gives_up_at_once,
    "R7": _what_is_kept_is_saved_at_the_end,
}
