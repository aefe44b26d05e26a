"""Switches off the protection of each row of rollouts; see faults/teacher/sabotage.py."""

from collections.abc import Callable
from typing import Any

from faults.replacing import put


def _one_stream_of_random_numbers(program: str) -> None:
    if program == "trainer":
        import numpy as np

        from student_trainer.generating.rollouts import writing

        stream = np.random.default_rng(0)

        def next_ones(_seed: int, _slot: object, count: int) -> Any:
            return stream.random(count)

        put(writing, "uniforms_of", next_ones)


def _rollouts_in_flight_are_not_saved(program: str) -> None:
    if program == "trainer":
        from student_trainer.run import loop

        def nothing(*_: object) -> dict[str, Any]:
            return {}

        put(loop, "tensors_of", nothing)


def _lines_after_the_checkpoint_stay(program: str) -> None:
    if program == "trainer":
        from student_trainer.generating.rollouts.kept import KeptRollouts

        def all_of_them(_self: KeptRollouts, _step: int) -> None:
            return

        put(KeptRollouts, "keep_before", all_of_them)


def _rollouts_are_given_up_at_once(program: str) -> None:
    if program == "trainer":
        from student_trainer.run import loop
        from student_trainer.targets import for_new_texts

        def hasty(provider: Any) -> Any:
            put(provider._calls._outage, "_budget_seconds", 0.0)
            return for_new_texts(provider)

        put(loop, "for_new_texts", hasty)


def _no_room_for_a_line_is_any_error(program: str) -> None:
    if program == "trainer":
        from student_trainer.journal import disk_full
        from student_trainer.run import life

        def never(_error: BaseException) -> bool:
            return False

        for module in (disk_full, life):
            put(module, "is_disk_full", never)


def _texts_are_not_cut(program: str) -> None:
    if program == "trainer":
        from student_trainer.generating import generator

        def until_an_end(self: Any, row: Any, token: int) -> Any:
            if token in self._ends:
                return generator.Written(row.index, row.ids, token)
            row.ids.append(token)
            return None

        put(generator._Writer, "_with", until_an_end)


def _nothing_repeats(program: str) -> None:
    if program == "trainer":
        from student_trainer.generating.rollouts import metrics

        def all_different(_ids: object) -> float:
            return 1.0

        put(metrics, "distinct_share", all_different)


def _any_logits_choose(program: str) -> None:
    if program == "trainer":
        from student_trainer.generating import generator
        from student_trainer.generating.sampling import chosen_ids

        def trusting(logits_BV: Any, *rest: Any) -> Any:
            return chosen_ids(logits_BV.nan_to_num(), *rest)

        put(generator, "chosen_ids", trusting)


ROWS: dict[str, Callable[[str], None]] = {
    "O1": _one_stream_of_random_numbers,
    "O2": _rollouts_in_flight_are_not_saved,
    "O3": _lines_after_the_checkpoint_stay,
    "O4": _rollouts_are_given_up_at_once,
    "O5": _no_room_for_a_line_is_any_error,
    "O6": _texts_are_not_cut,
    "O7": _nothing_repeats,
    "O8": _any_logits_choose,
}
