"""The stage `precompute`: records a teacher over the data of a run spec."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lectern_common.checks.compatibility import require_teacher_fits
from lectern_common.checks.documents import data_folders, with_documents
from lectern_common.checks.student import student_facts
from lectern_common.errors import InvalidSpec
from lectern_common.files import write_atomic
from lectern_common.roots import Roots, resolve_under
from lectern_common.spec.run_spec import RunSpec
from lectern_common.spec.sections import TeacherSpec
from lectern_common.stages.precompute import PrecomputeRequest
from lectern_common.stages.status import Report
from lectern_common.teacher.address import replica_addresses
from lectern_common.teacher.identity import layout_of_bytes
from lectern_common.teacher.record.manifest import (
    HEAD_NAME,
    TEACHER_NAME,
    TOKENIZER_MAP_NAME,
    RecordFacts,
    RecordManifest,
    read_record_manifest,
)
from student_trainer.data.select import open_data
from student_trainer.record.facts import (
    bytes_there,
    expected_bytes,
    meaning_of,
    needs_head,
    record_facts,
    require_room,
    what_decides,
)
from student_trainer.record.plan import planned_parts
from student_trainer.record.precompute import REQUESTS_IN_FLIGHT, PlannedPart, record_part
from student_trainer.record.quality import Quality, quality_of
from student_trainer.record.writer import RecordWriter, recording
from student_trainer.stop import Stop
from student_trainer.teacher.head import write_head
from student_trainer.teacher.remote import RemoteTeacher, teacher_of

_REPORT_SECONDS = 0.5
# In the stage's own folder: what was asked, once the record is about to get its name; and what was
# measured before, which a stage that goes on does not measure again.
_ASKED_NAME, _QUALITY_NAME = "asked.json", "quality.json"


def precompute(
    asked: PrecomputeRequest, roots: Roots, work: Path, *, stop: Stop, report: Report
) -> dict[str, Any]:
    """Records the teacher of a run spec over its data, as `DATA/OUTPUT`.

    Says about how large the record will be and what is free, and what each part loses (quality.py);
    then counts batches, of all parts. Stopped or killed, the same call goes on.

    Args:
        asked: what to record; the spec distils.
        roots: what its paths are relative to.
        work: a folder of this stage; what is recorded lies beside the record.
        stop: ends it with StopRequested.
        report: see lectern_common/stages/status.py.

    Returns:
        {"record": its name, "bytes": its size, "quality": [what each part loses], "manifest": ...}.

    Raises:
        StopRequested: a stop was requested.
        Conflict: there is such a record, or one is being made in another way.
        DiskFull: the disk is too small, or has become full.
        LecternError: data, student and teacher do not fit, or the teacher cannot be reached.
    """
    text = asked.model_dump_json().encode()
    record = resolve_under(roots.data, asked.output, "output")
    if record.exists() and _is(work / _ASKED_NAME, text):
        return _result(asked, work, read_record_manifest(record))
    spec = with_documents(asked.to_record(), roots)
    teacher = _recordable(spec)
    student = student_facts(spec, roots)
    if student.vocab_size is None:
        why = "is not on this machine, or its config names no vocabulary: download it first"
        raise InvalidSpec([("student", why)])
    data = open_data(spec, roots, student.vocab_size, student.tokens)
    parts = planned_parts(spec, data, asked.options)
    with ExitStack() as stack:
        remote = stack.enter_context(
            teacher_of(
                teacher,
                roots,
                run_id=spec.name,
                vocab_size=student.vocab_size,
                device=torch.device("cpu"),
                stop=stop,
            )
        )
        model = remote.connect()
        tokens = remote.tokenizer_map()
        require_teacher_fits(
            spec, model, lambda: tokens, student, data.manifest, *data_folders(spec, roots)
        )
        remote.narrow()
        facts = record_facts(spec, data, model, tokens, remote.vocab_size())
        plan = facts.model_dump(mode="json") | {"options": asked.options.model_dump()}
        plan["tensor_parallel"] = layout_of_bytes(model)
        plan["spec"] = {**what_decides(spec), "validation_rows": spec.evaluation.max_sequences}
        writer = stack.enter_context(recording(record, plan))
        if writer.is_whole():
            writer.put_in_place()
            return _result(asked, work, read_record_manifest(record))
        report(begun(writer, facts, parts, remote, tokens), 0, 0)
        head = remote.output_head() if any(map(needs_head, parts)) else None
        for one in _qualities(work, facts, parts, remote):
            report(one.in_words(), 0, 0)
        progress = _Progress(report, parts)
        done = [
            record_part(
                writer,
                part,
                remote,
                meaning_of(facts, part, head),
                stop=stop,
                report=progress,
                requests_in_flight=REQUESTS_IN_FLIGHT * len(replica_addresses(remote.address)),
            )
            for part in parts
        ]
        write_atomic(work / _ASKED_NAME, text)
        return _result(asked, work, writer.finish(facts, done))


def begun(
    writer: RecordWriter,
    facts: RecordFacts,
    parts: list[PlannedPart],
    remote: RemoteTeacher,
    tokens: dict[str, int],
    copies: int = 1,
) -> str:
    """Writes what a record says of its teacher; returns a sentence about the size of the record.

    Args:
        writer: of the record.
        facts: about it.
        parts: that it will have.
        remote: the teacher, connected.
        tokens: its token-to-id map.
        copies: how many times the rows are on the disk at the end.

    Raises:
        DiskFull: the disk is too small for it.
        LecternError: the head cannot be fetched.
    """
    expected = expected_bytes(facts, parts)
    said = require_room(writer.folder, expected * copies, bytes_there(writer.work))
    description = remote.model.SerializeToString(deterministic=True)
    write_atomic(writer.folder / TEACHER_NAME, description)
    text = json.dumps(tokens, sort_keys=True)
    write_atomic(writer.folder / TOKENIZER_MAP_NAME, text.encode())
    if any(map(needs_head, parts)):
        write_head(writer.folder / HEAD_NAME, remote.served_head())
    return said


class _Progress:
    """Passes progress on a few times a second, and the last of each part."""

    def __init__(self, report: Report, parts: list[PlannedPart]) -> None:
        self._report = report
        self._last = 0.0
        self._before = {}
        self._all = 0
        for part in parts:
            self._before[part.name] = self._all
            self._all += part.num_batches

    def __call__(self, part: PlannedPart, batches: int, num_bytes: int) -> None:
        now = time.monotonic()
        if now - self._last >= _REPORT_SECONDS or batches == part.num_batches:
            self._last = now
            self._report("batches", self._before[part.name] + batches, self._all)


def _recordable(spec: RunSpec) -> TeacherSpec:
    """Returns the teacher of a spec. Raises InvalidSpec unless there is something to record."""
    if spec.data.sources is not None:
        why = "a record is of one dataset: record each source by a spec with its path and teacher"
        raise InvalidSpec([("data.sources", why)])
    if spec.teacher is None:
        raise InvalidSpec([("teacher", "is required: there is nothing to record without one")])
    if spec.teacher.record is not None:
        why = "is a record already; set teacher.address to the server of its teacher instead"
        raise InvalidSpec([("teacher.record", why)])
    if spec.data.path is None:
        raise InvalidSpec([("data.path", "is required: synthetic rows are not recorded")])
    return spec.teacher


def _qualities(
    work: Path, facts: RecordFacts, parts: list[PlannedPart], remote: RemoteTeacher
) -> Iterator[Quality]:
    """Yields what each part loses; measured once, and kept for a stage that goes on."""
    path = work / _QUALITY_NAME
    if path.exists():
        with suppress(ValueError, TypeError):  # damaged: measured again
            yield from [Quality(**one) for one in json.loads(path.read_bytes())]
            return
    found = []
    for part in parts:
        head = remote.output_head() if needs_head(part) else None
        found.append(quality_of(part, remote, meaning_of(facts, part, head)))
        yield found[-1]
    write_atomic(path, json.dumps([asdict(one) for one in found]).encode())


def _is(path: Path, data: bytes) -> bool:
    with suppress(FileNotFoundError):
        return path.read_bytes() == data
    return False


def _result(asked: PrecomputeRequest, work: Path, manifest: RecordManifest) -> dict[str, Any]:
    quality = []
    with suppress(FileNotFoundError, ValueError):
        quality = json.loads((work / _QUALITY_NAME).read_bytes())
    return {
        "record": asked.output,
        "bytes": manifest.total_bytes,
        "quality": quality,
        "manifest": manifest.model_dump(mode="json", by_alias=True),
    }
