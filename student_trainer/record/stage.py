"""`python -m student_trainer.record.stage`: records a teacher over the data of a run spec.

`lectern precompute` starts it with a JSON object in a line on standard input: the resolved spec,
the record's name, and how to record. It prints a JSON object a line: `{"size": ...}`, then
`{"quality": ...}` of each part (quality.py), `{"progress": ...}` while it records, and at the end
`{"record": ...}`. What goes wrong goes to standard error, as `{"error": ..., "field": ...}`, with
the exit status of the error. A signal ends it between two batches, and so does the end of its
standard input with --stop-with-parent; started again, it goes on.
"""

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lectern_common.checks.compatibility import require_teacher_fits
from lectern_common.checks.documents import data_folders, with_documents
from lectern_common.checks.student import student_facts
from lectern_common.errors import DiskFull, InvalidRequest, InvalidSpec, LecternError
from lectern_common.files import write_atomic
from lectern_common.logs import configure_logs
from lectern_common.roots import Roots, resolve_under
from lectern_common.spec.load import parse_spec
from lectern_common.spec.run_spec import RunSpec
from lectern_common.teacher.address import replica_addresses
from lectern_common.teacher.record.bits import packed_bytes
from lectern_common.teacher.record.index import ENTRY
from lectern_common.teacher.record.manifest import (
    HEAD_NAME,
    TEACHER_NAME,
    TOKENIZER_MAP_NAME,
    RecordFacts,
    RecordManifest,
    read_record_manifest,
)
from lectern_common.tokens.tokenizer_map import tokenizer_sha256
from lectern_common.wire.formats import CARRIERS, DTYPE_NAMES
from lectern_common.words import size
from student_trainer.data.select import Data, open_data
from student_trainer.record.plan import RecordOptions, planned_parts
from student_trainer.record.precompute import REQUESTS_IN_FLIGHT, PlannedPart, record_part
from student_trainer.record.quality import quality_of
from student_trainer.record.writer import RecordWriter, recording
from student_trainer.stop import Stop, StopRequested, stop_at_end_of_input
from student_trainer.teacher.head import write_head
from student_trainer.teacher.recorded_rows import RowMeaning
from student_trainer.teacher.remote import RemoteTeacher, teacher_of

STOPPED = 75  # ended on request; the same command goes on
_REPORT_SECONDS = 0.5
# Distinct ids of a row of draws, at most as many as draws; their bytes are known only afterwards.
_DRAWN_ID_BYTES = 5.5
_MAX_SEQUENCE_BYTES = (1 << 31) - (1 << 12)  # Linux reads no more at once

Report = Callable[[dict[str, Any]], None]


def precompute(
    spec: RunSpec,
    roots: Roots,
    name: str,
    options: RecordOptions,
    *,
    stop: Stop,
    report: Report = lambda said: None,
) -> RecordManifest:
    """Records the teacher of a run spec over its data, as `DATA/NAME`; returns the manifest.

    Args:
        spec: resolved; it distils.
        roots: what its paths are relative to.
        name: of the record, a folder under the data root.
        options: how to record.
        stop: ends it with StopRequested; the same call goes on later.
        report: called with {"size": {bytes, free}}, the record's about and the disk's; with
            {"quality": ...} of each part; then now and then with {"progress": {part, done, of,
            bytes}}: batches of all parts done, how many there are, bytes of the part's rows.

    Raises:
        StopRequested: a stop was requested.
        Conflict: there is such a record, or one is being made in another way.
        DiskFull: the disk is too small, or has become full.
        LecternError: data, student and teacher do not fit, or the teacher cannot be reached.
    """
    spec = with_documents(spec, roots)
    if spec.teacher is None:
        raise InvalidSpec([("teacher", "is required: there is nothing to record without one")])
    if spec.teacher.record is not None:
        why = "is a record already; set teacher.address to the server of its teacher instead"
        raise InvalidSpec([("teacher.record", why)])
    if spec.data.path is None:
        raise InvalidSpec([("data.path", "is required: synthetic rows are not recorded")])
    student = student_facts(spec, roots)
    if student.vocab_size is None:
        why = "is not on this machine, or its config names no vocabulary: download it first"
        raise InvalidSpec([("student", why)])
    data = open_data(spec, roots, student.vocab_size, student.tokens)
    parts = planned_parts(spec, data, options)
    record = resolve_under(roots.data, name, "output")
    with ExitStack() as stack:
        remote = stack.enter_context(
            teacher_of(
                spec.teacher,
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
        facts = _facts(spec, data, remote, tokens)
        plan = facts.model_dump(mode="json")
        plan |= {"options": asdict(options), "spec": _what_decides(spec)}
        writer = stack.enter_context(recording(record, plan))
        if writer.is_whole():
            writer.put_in_place()
            return read_record_manifest(record)
        write_atomic(writer.folder / TEACHER_NAME, model.SerializeToString(deterministic=True))
        text = json.dumps(tokens, sort_keys=True)
        write_atomic(writer.folder / TOKENIZER_MAP_NAME, text.encode())
        return _recorded(writer, facts, parts, remote, stop, report)


def _recorded(
    writer: RecordWriter,
    facts: RecordFacts,
    parts: list[PlannedPart],
    remote: RemoteTeacher,
    stop: Stop,
    report: Report,
) -> RecordManifest:
    requests_in_flight = REQUESTS_IN_FLIGHT * len(replica_addresses(remote.address))
    needs_head = any(part.format.representation.format.needs_head for part in parts)
    head = remote.output_head() if needs_head else None
    expected = sum(_expected_bytes(facts, part) for part in parts)
    if needs_head:
        expected += facts.vocab_size * facts.hidden_size * CARRIERS[facts.hidden_dtype].itemsize
    there = sum(path.stat().st_size for path in writer.folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(writer.folder).free
    report({"size": {"bytes": expected, "free": free}})
    if expected - there > free:
        raise DiskFull(
            f"the record takes about {size(expected)}, and {size(free)} are free: free some, "
            "choose a smaller teacher.representation, or record fewer rows"
        )
    if needs_head:
        write_head(writer.folder / HEAD_NAME, remote.served_head())
    meanings = [
        RowMeaning(
            facts.vocab_size,
            facts.hidden_size,
            facts.hidden_dtype,
            part.temperature or 1.0,
            head if part.format.representation.format.needs_head else None,
        )
        for part in parts
    ]
    for part, meaning in zip(parts, meanings, strict=True):
        report({"quality": asdict(quality_of(part, remote, meaning))})
    progress = _Progress(report, parts)
    done = [
        record_part(
            writer,
            part,
            remote,
            meaning,
            stop=stop,
            report=progress,
            requests_in_flight=requests_in_flight,
        )
        for part, meaning in zip(parts, meanings, strict=True)
    ]
    return writer.finish(facts, done)


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
            done = self._before[part.name] + batches
            progress = {"part": part.name, "done": done, "of": self._all, "bytes": num_bytes}
            self._report({"progress": progress})


def _facts(spec: RunSpec, data: Data, remote: RemoteTeacher, tokens: dict[str, int]) -> RecordFacts:
    """Returns what the manifest says besides parts and files."""
    model = remote.model
    return RecordFacts.model_validate(
        {
            "model_id": model.model_id,
            "fingerprint": model.fingerprint,
            "weights_sha256": model.weights_sha256,
            "tokenizer_sha256": tokenizer_sha256(tokens),
            "vocab_size": remote.vocab_size(),
            "hidden_size": model.hidden_size,
            "hidden_dtype": DTYPE_NAMES[model.hidden_dtype],
            "contexts": {
                "data_path": str(spec.data.path),
                "data_sha256s": data.sha256s,
                "seq_len": spec.data.seq_len,
                "attention_across_documents": spec.data.attention_across_documents is not False,
                "packs_chats": data.packs_chats,
            },
            "producer_version": version("lectern"),
        }
    )


def _what_decides(spec: RunSpec) -> dict[str, Any]:
    """Returns what of a spec decides the bytes of its record, besides the manifest's facts."""
    return {
        "data": spec.data.model_dump(mode="json"),
        "validation_rows": spec.evaluation.max_sequences,
        "temperature": spec.objective.temperature,
        "teacher": spec.teacher.asks_for.__dict__ if spec.teacher is not None else None,
    }


def _expected_bytes(facts: RecordFacts, part: PlannedPart) -> int:
    """Returns about how many bytes a part will take; fewer if sequences or drawn ids repeat.

    Raises:
        InvalidSpec: the rows of one sequence are more than one read returns.
    """
    row = part.format.row_bytes(facts.vocab_size, facts.hidden_size, facts.hidden_dtype)
    if row is None:
        row = int((part.format.num_draws or 0) * _DRAWN_ID_BYTES) + 1
    seq_len = facts.contexts.seq_len
    if row * seq_len > _MAX_SEQUENCE_BYTES:
        why = (
            f"the answers about {seq_len} tokens take {size(row * seq_len)}, more than the "
            f"{size(_MAX_SEQUENCE_BYTES)} that a record holds of one sequence; set it to at most "
            f"{_MAX_SEQUENCE_BYTES // row}"
        )
        raise InvalidSpec([("data.seq_len", why)])
    of_sequence = ENTRY.itemsize + packed_bytes(seq_len, 1)
    return part.num_positions * row + part.num_sequences * of_sequence


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m student_trainer.record.stage")
    parser.add_argument("--home", type=Path, help="see lectern_common/roots.py")
    parser.add_argument(
        "--stop-with-parent",
        action="store_true",
        help="also stop once standard input, a pipe, is closed: so when the process that holds its "
        "other end is killed",
    )
    arguments = parser.parse_args(argv)
    configure_logs("warning")
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.request())

    def say(line: dict[str, Any]) -> None:
        print(json.dumps(line), flush=True)

    try:
        asked = json.loads(sys.stdin.readline())
        if arguments.stop_with_parent:
            stop_at_end_of_input(stop)
        manifest = precompute(
            parse_spec(asked["spec"]),
            Roots.of_home(arguments.home),
            asked["output"],
            RecordOptions(**asked["options"]),
            stop=stop,
            report=say,
        )
    except StopRequested:
        return STOPPED
    except LecternError as error:
        field = error.field if isinstance(error, InvalidRequest) else None
        print(json.dumps({"error": str(error), "field": field}), file=sys.stderr)
        return error.exit_code
    say({"record": manifest.model_dump(mode="json", by_alias=True)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
