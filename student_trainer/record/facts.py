"""What is known of a record before its rows are: the facts of its manifest, and its size."""

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lectern_common.errors import DiskFull, InvalidSpec
from lectern_common.spec.run_spec import RunSpec
from lectern_common.teacher.record.bits import packed_bytes
from lectern_common.teacher.record.index import ENTRY
from lectern_common.teacher.record.manifest import RecordFacts
from lectern_common.tokens.tokenizer_map import tokenizer_sha256
from lectern_common.wire.formats import CARRIERS, DTYPE_NAMES
from lectern_common.words import size
from lectern_models.logits.output_head import OutputHead
from protos import teacher_pb2
from student_trainer.data.select import Data
from student_trainer.record.precompute import PlannedPart
from student_trainer.teacher.recorded_rows import RowMeaning

# Distinct ids of a row of draws, at most as many as draws; their bytes are known only afterwards.
_DRAWN_ID_BYTES = 5.5
_MAX_SEQUENCE_BYTES = (1 << 31) - (1 << 12)  # Linux reads no more at once


def record_facts(
    spec: RunSpec, data: Data, model: teacher_pb2.Model, tokens: dict[str, int], vocab_size: int
) -> RecordFacts:
    """Returns what the manifest says besides parts and files.

    Args:
        spec: the run's, with its documents resolved.
        data: its rows.
        model: the teacher's description of itself.
        tokens: its token-to-id map.
        vocab_size: V, that it is asked for.
    """
    return RecordFacts.model_validate(
        {
            "model_id": model.model_id,
            "fingerprint": model.fingerprint,
            "weights_sha256": model.weights_sha256,
            "tokenizer_sha256": tokenizer_sha256(tokens),
            "vocab_size": vocab_size,
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


def needs_head(part: PlannedPart) -> bool:
    """Returns whether a part's rows mean nothing without the teacher's head."""
    return part.format.representation.format.needs_head


def meaning_of(facts: RecordFacts, part: PlannedPart, head: OutputHead | None) -> RowMeaning:
    """Returns what the bytes of a part mean; `head` is used only with hidden states."""
    return RowMeaning(
        facts.vocab_size,
        facts.hidden_size,
        facts.hidden_dtype,
        part.temperature or 1.0,
        head if needs_head(part) else None,
    )


def expected_bytes(facts: RecordFacts, parts: list[PlannedPart]) -> int:
    """Returns about how many bytes a record will take; fewer if sequences or drawn ids repeat.

    Raises:
        InvalidSpec: the rows of one sequence are more than one read returns.
    """
    total = sum(_bytes_of_part(facts, part) for part in parts)
    if any(needs_head(part) for part in parts):
        total += facts.vocab_size * facts.hidden_size * CARRIERS[facts.hidden_dtype].itemsize
    return total


def require_room(folder: Path, expected: int, there: int) -> str:
    """Returns a sentence about the size of a record, and what is free where it will be.

    Args:
        folder: on the disk that it will be on.
        expected: bytes that it needs in all.
        there: bytes of those that are written already.

    Raises:
        DiskFull: the rest does not fit.
    """
    free = shutil.disk_usage(folder).free
    if expected - there > free:
        raise DiskFull(
            f"the record takes about {size(expected)}, and {size(free)} are free: free some, "
            "choose a smaller teacher.representation, or record fewer rows"
        )
    return f"the record takes about {size(expected)}; {size(free)} are free"


def bytes_there(folder: Path) -> int:
    """Returns the size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def what_decides(spec: RunSpec) -> dict[str, Any]:
    """Returns what of a spec decides the answers of its record, besides the manifest's facts."""
    return {
        "data": spec.data.model_dump(mode="json"),
        "temperature": spec.objective.temperature,
        "teacher": spec.teacher.asks_for.__dict__ if spec.teacher is not None else None,
    }


def _bytes_of_part(facts: RecordFacts, part: PlannedPart) -> int:
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
