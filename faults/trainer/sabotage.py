"""Switches off the protection of each trainer row; see faults/teacher/sabotage.py."""

import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from faults.replacing import put


def _no_moments_restored(_program: str) -> None:
    from student_trainer.run import assemble as assembly

    def nothing(*_: object) -> None:
        return

    put(assembly, "load_optimizer_tensors", nothing)


def _checkpoints_written_in_place(_program: str) -> None:
    from lectern_common.run import checkpoint_files as files
    from student_trainer.journal import checkpoint
    from student_trainer.journal.checkpoint import CheckpointStore

    def save(
        self: CheckpointStore,
        step: int,
        model: dict[str, Any],
        optimizer: dict[str, Any],
        state: dict[str, Any],
        rollouts: dict[str, Any] | None = None,
    ) -> Path:
        target = self._path(step)
        target.mkdir(parents=True, exist_ok=True)
        self._save_tensors(checkpoint._on_cpu(model), target / files.MODEL_NAME)
        self._save_tensors(checkpoint._on_cpu(optimizer), target / files.OPTIMIZER_NAME)
        if rollouts:
            self._save_tensors(rollouts, target / files.ROLLOUTS_NAME)
        files.write_json(target / files.STATE_NAME, {**state, "step": step})
        (target / files.MANIFEST_NAME).unlink(missing_ok=True)
        manifest = files.manifest_of(target)
        files.write_json(target / files.MANIFEST_NAME, manifest)
        self._prune((state.get("best") or {}).get("step"))
        return target

    put(CheckpointStore, "save", save)


def _hashes_all_alike(_program: str) -> None:
    from lectern_common.run import checkpoint_files
    from student_trainer.journal import checkpoint

    def alike(_path: Path) -> str:
        return ""

    put(checkpoint, "sha256_of", alike)
    put(checkpoint_files, "sha256_of", alike)


def _a_full_disk_is_any_error(_program: str) -> None:
    from student_trainer.journal import disk_full

    def never(_error: BaseException) -> bool:
        return False

    put(disk_full, "is_disk_full", never)


def _signals_not_heard(_program: str) -> None:
    from student_trainer.stop import Stop

    def deaf(_self: Stop) -> None:
        return

    put(Stop, "request", deaf)


def _any_spec_resumes(_program: str) -> None:
    from student_trainer.run import assemble as assembly

    def trusting(*_: object) -> None:
        return

    put(assembly, "require_resumable", trusting)


def _tokens_not_compared(_program: str) -> None:
    from lectern_common.checks import vocabularies

    def trusting(*_: object, **_named: object) -> None:
        return

    put(vocabularies, "require_same_tokens", trusting)


def _everything_is_finite(_program: str) -> None:
    import numpy as np

    from student_trainer.run import loop

    kept = {name: getattr(np, name) for name in ("random", "uint64")}
    put(loop, "np", types.SimpleNamespace(**kept, isfinite=np.ones_like))


def _any_number_left_out(program: str) -> None:
    if program == "lectern":
        from lectern_data.left_out import Faults

        def trusting(_self: Faults) -> None:
            return

        put(Faults, "require_few", trusting)


def _own_rows_alone_are_counted(_program: str) -> None:
    from student_trainer.ranks.world import Ranks

    totals = Ranks.totals

    def own(_self: Ranks, *values: float) -> list[float]:
        return list(values)

    # Not a sum, although it is computed by one.
    def from_first(self: Ranks, values: Sequence[int]) -> list[int]:
        return [round(sum_) for sum_ in totals(self, *(v if self.is_first else 0 for v in values))]

    put(Ranks, "totals", own)
    put(Ranks, "from_first", from_first)


def _any_end_of_a_rank_is_ordinary(_program: str) -> None:
    from student_trainer.ranks import supervisor as rank_processes

    put(rank_processes, "_ORDINARY", range(-64, 256))


def _durations_by_the_time_of_day(_program: str) -> None:
    from student_trainer.run import loop

    def time_of_day() -> float:
        return time.time()

    put(loop, "time", types.SimpleNamespace(monotonic=time_of_day, perf_counter=time_of_day))


def _a_workers_end_ends_all(program: str) -> None:
    if program == "lectern":
        from lectern_data.tokens import tokenizing

        put(tokenizing, "_TRIES", 1)


def _the_loop_writes_its_metrics(_program: str) -> None:
    from student_trainer.journal.sinks import QueuedSink

    def at_once(self: QueuedSink, step: int, metrics: Any) -> None:
        self._sink.write(step, metrics)

    put(QueuedSink, "put", at_once)


ROWS: dict[str, Callable[[str], None]] = {
    "S1": _no_moments_restored,
    "S2": _checkpoints_written_in_place,
    "S3": _hashes_all_alike,
    "S4": _a_full_disk_is_any_error,
    "S5": _signals_not_heard,
    "S6": _any_spec_resumes,
    "S7": _tokens_not_compared,
    "S8": _everything_is_finite,
    "S9": _any_number_left_out,
    "S10": _own_rows_alone_are_counted,
    "S11": _any_end_of_a_rank_is_ordinary,
    "S12": _durations_by_the_time_of_day,
    "S13": _a_workers_end_ends_all,
    "S14": _the_loop_writes_its_metrics,
}
