"""Which checkpoint a run resumes from, and which teacher and best loss go with it."""

from collections.abc import Mapping
from typing import Any

from lectern_common.errors import CorruptData
from lectern_common.run.folder import RunFolder
from lectern_common.spec.run_spec import RunSpec
from lectern_common.teacher.identity import TeacherIdentity
from student_trainer.evaluation.best import Best
from student_trainer.journal.checkpoint import Checkpoint, CheckpointStore
from student_trainer.ranks.world import Ranks


def newest_of_all(store: CheckpointStore, ranks: Ranks) -> Checkpoint | None:
    """Returns the newest intact checkpoint; rank 0 verifies it for all ranks."""
    found: Checkpoint | None = None
    with ranks.together():
        if ranks.is_first:
            store.sweep()
            found = store.newest()
    (step,) = ranks.from_first([-1 if found is None else found.step])
    if ranks.is_first or step < 0:
        return found
    return store.verified_before(step)


def require_not_forked(folder: RunFolder) -> None:
    """Raises CorruptData if the run is a fork: without a checkpoint, it would begin from nothing.

    A run of its own starts over then.
    """
    forked = folder.read_forked_from()
    if forked is not None:
        raise CorruptData(
            f"run {folder.run_id} was forked from {forked}, and no intact checkpoint is left to "
            "begin with; fork that run again, or put the checkpoint back"
        )


def taught_by(folder: RunFolder, begun: Mapping[str, Any] | None) -> TeacherIdentity | None:
    """Returns the teacher that the run must keep; None means any."""
    if begun is None:
        return folder.read_teacher()
    return TeacherIdentity(begun["teacher_model"], begun["teacher_fingerprint"])


def best_saved(spec: RunSpec, best: Best, store: CheckpointStore) -> Best:
    """Returns `best`, or, if no checkpoint holds its weights, the best that a checkpoint holds.

    That happens if the run had no patience before, or if a newer checkpoint was found broken.
    """
    if spec.evaluation.patience is None or best.step is None or best.step in store.steps():
        return best
    saved = store.best()
    return Best() if saved is None else Best(*saved)
