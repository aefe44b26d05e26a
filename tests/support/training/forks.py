"""Forks of runs, made as the control plane makes them, without its database."""

from typing import Any

from control_plane.runs.forking import complete, taken
from lectern_common.run.folder import RunFolder
from lectern_common.spec.forking import forked_spec
from lectern_common.teacher.identity import TeacherIdentity
from tests.support.training.runs import Home


def forked(
    home: Home,
    source: RunFolder,
    changes: dict[str, Any] | None = None,
    step: int | None = None,
    teacher: TeacherIdentity | None = None,
) -> RunFolder:
    """Returns the folder of a fork, not yet trained."""
    home.runs += 1
    target = RunFolder(home.roots.runs / f"fork-{home.runs}")
    with taken(source, step) as checkpoint:
        spec = forked_spec(source.read_spec(), changes or {}, checkpoint.source.step)
        packs_chats = checkpoint.packs_chats or not checkpoint.keeps_rows(spec)
        complete(checkpoint, spec, teacher, packs_chats=packs_chats)
        checkpoint.folder.path.rename(target.path)
    return target
