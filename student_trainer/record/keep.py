"""Begins and ends the record that a run keeps of its teacher's answers: `teacher.record_to`."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from lectern_common.roots import Roots, resolve_under
from lectern_common.spec.run_spec import RunSpec
from lectern_common.stages.precompute import RecordOptions
from lectern_common.teacher.identity import layout_of_bytes
from lectern_common.teacher.record.manifest import RecordManifest
from student_trainer.data.select import Data
from student_trainer.record.facts import record_facts, what_decides
from student_trainer.record.kept import AGAIN, RECEIVED, Kept
from student_trainer.record.plan import planned_parts
from student_trainer.record.stage import begun
from student_trainer.record.writer import RecordWriter, recording, recording_path
from student_trainer.stop import Stop
from student_trainer.teacher.remote import RemoteTeacher


@dataclass(frozen=True)
class Keeping:
    """A run's record in the making.

    Attributes:
        kept: by this rank.
        writer: of the record; only on the rank that makes it.
        said: about its size; only there, and only if it has just been begun.
    """

    kept: Kept
    writer: RecordWriter | None = None
    said: str | None = None

    def finish(self, stop: Stop, progressed: Callable[[], None]) -> RecordManifest | None:
        """Makes the record, on the rank that does; see Kept.finish. None means there is none."""
        if self.writer is None:
            return None
        return self.kept.finish(self.writer, stop, progressed)


def begin_keeping(
    spec: RunSpec,
    roots: Roots,
    data: Data,
    teacher: RemoteTeacher,
    *,
    run_id: str,
    rank: int,
    is_resumed: bool,
    held: ExitStack,
) -> Keeping | None:
    """Returns what keeps the answers that a run receives; None if its record is there already.

    Rank 0 makes the record, and holds its lock until `held` is closed. Each rank opens its files
    afterwards (Kept.open).

    Args:
        spec: the run's, with its documents resolved; it has a record_to.
        roots: what its paths are relative to.
        data: its rows.
        teacher: connected.
        run_id: of the run; what another run has begun is not gone on with.
        rank: of this process.
        is_resumed: the run goes on, with the same record_to: it may find its record made.
        held: closes what was opened.

    Raises:
        Conflict: there is such a record, or another run makes it.
        DiskFull: the disk is too small for it.
        LecternError: the teacher does not answer.
    """
    if spec.teacher is None or spec.teacher.record_to is None:
        raise ValueError("the spec keeps no answers")
    record = resolve_under(roots.data, spec.teacher.record_to, "teacher.record_to")
    if is_resumed and record.exists():
        return None
    parts = planned_parts(spec, data, RecordOptions())
    tokens = teacher.tokenizer_map()
    facts = record_facts(spec, data, teacher.model, tokens, teacher.vocab_size())
    kept = Kept(recording_path(record), rank, facts, parts)
    held.callback(kept.close)
    if rank > 0:
        return Keeping(kept)
    plan = facts.model_dump(mode="json", exclude={"producer_version"}) | {
        "run": run_id,
        "spec": what_decides(spec),
        "tensor_parallel": layout_of_bytes(teacher.model),
    }
    writer = held.enter_context(recording(record, plan, "teacher.record_to", AGAIN))
    if writer.is_whole():  # killed before it had its name
        writer.put_in_place()
        return None
    is_new = not (writer.work / RECEIVED).exists()
    for part in parts:  # of an end that was cut short: the run may go on for more steps
        writer.drop(part.name)
    said = begun(writer, facts, parts, teacher, tokens, copies=2)
    return Keeping(kept, writer, said if is_new else None)
