"""Checks that a record suits a run: its data, its rows, its temperature. Without torch."""

from pathlib import Path

from lectern_common.errors import Incompatible, InvalidSpec, NotFound
from lectern_common.roots import Roots, resolve_under
from lectern_common.spec.run_spec import RunSpec
from lectern_common.teacher.record.reader import RecordReader, records_in
from lectern_common.tokens.shards import ShardManifest


def record_folder(spec: RunSpec, roots: Roots) -> Path:
    """Returns the folder of the run's record.

    Raises:
        InvalidSpec: there is none; the message says which there are.
        ValueError: the spec learns from no record.
    """
    if spec.teacher is None or spec.teacher.record is None:
        raise ValueError("the spec learns from no record")
    folder = resolve_under(roots.data, spec.teacher.record, "teacher.record")
    if not folder.is_dir():
        there = ", ".join(records_in(roots.data)) or "none"
        why = f"no record {spec.teacher.record!r} under the data root {roots.data}; there: {there}"
        why += " (make one with `lectern precompute`)"
        raise InvalidSpec([("teacher.record", why)])
    return folder


def open_record(spec: RunSpec, roots: Roots) -> RecordReader:
    """Returns the run's record, opened.

    Raises:
        InvalidSpec: there is none.
        CorruptData: it is damaged.
    """
    folder = record_folder(spec, roots)
    try:
        return RecordReader(folder)
    except NotFound as error:
        raise InvalidSpec([("teacher.record", str(error))]) from None


def require_no_record(spec: RunSpec, roots: Roots) -> None:
    """Raises InvalidSpec if the record that a new run is to make is there, or something like it."""
    if spec.teacher is None or spec.teacher.record_to is None:
        return
    folder = resolve_under(roots.data, spec.teacher.record_to, "teacher.record_to")
    if folder.exists():
        why = f"{spec.teacher.record_to!r} is there already, under the data root {roots.data}; "
        why += "choose another name, or delete it with `lectern record delete`"
        raise InvalidSpec([("teacher.record_to", why)])


def require_record_fits(
    spec: RunSpec, record: RecordReader, manifest: ShardManifest | None
) -> None:
    """Raises unless the record's rows are as long as the run's, and hold what it will ask for.

    Whether it has every row is not known before all are read: the trainer does so before its first
    step. Other data with the same documents, in another order, may have the same rows.

    Args:
        spec: the run's.
        record: that it learns from.
        manifest: of its training data; None for synthetic data.

    Raises:
        Incompatible: the length of the rows, the representation or the temperature differ; the
            message says what to set.
    """
    teacher, contexts = spec.teacher, record.manifest.contexts
    if teacher is None or manifest is None:
        raise Incompatible("a record is of a dataset; set data.path to the one that it was made of")
    if contexts.seq_len != spec.data.seq_len:
        raise Incompatible(
            f"data.seq_len is {spec.data.seq_len}, but the record {teacher.record} was made with "
            f"{contexts.seq_len}: rows of another length give tokens another context, for which "
            f"the teacher was not asked; set data.seq_len {contexts.seq_len}, or make another "
            "record"
        )
    record.parts(teacher.asks_for.kind, spec.objective.temperature)
