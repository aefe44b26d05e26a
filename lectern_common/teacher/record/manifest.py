"""The manifest of a record: what was recorded, of which teacher, over which data. No torch.

    RECORD/manifest.json          RecordManifest (schema lectern-record-v1), written last
    RECORD/teacher.binpb          the teacher's description of itself, as GetModel sent it
    RECORD/tokenizer_map.json     its token-to-id map
    RECORD/head.safetensors       its output head; only with hidden states
    RECORD/PART/rows.bin          the rows of one part, sequence after sequence
    RECORD/PART/masks.bin         which tokens of each sequence have a row, one bit each
    RECORD/PART/index.bin         where each sequence's rows are: see index.py

docs/record.md describes every byte.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lectern_common.errors import Conflict, CorruptData, NotFound
from lectern_common.teacher.record.bits import bits_per_id, packed_bytes
from lectern_common.tokens.shards import Sha256
from lectern_common.wire.formats import CARRIERS, MAX_DRAWS, Representation

MANIFEST_NAME = "manifest.json"
TEACHER_NAME = "teacher.binpb"
TOKENIZER_MAP_NAME = "tokenizer_map.json"
HEAD_NAME = "head.safetensors"
ROWS_NAME, MASKS_NAME, INDEX_NAME = "rows.bin", "masks.bin", "index.bin"
PART_FILES = (ROWS_NAME, MASKS_NAME, INDEX_NAME)
RecordFormatName = Literal["hidden", "hidden_fp8", "top_k", "sampled"]
HiddenDtype = Literal["float32", "float16", "bfloat16"]
_SCHEMAS = "lectern-record-"
_PART_NAME = re.compile(r"^[a-z0-9][a-z0-9-]{0,62}$")

_Count = Annotated[int, Field(ge=0, lt=1 << 62)]


class _Frozen(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class RecordFormat(_Frozen):
    """How the rows of a part are stored. Parameters are set exactly if the format has them."""

    name: RecordFormatName
    """hidden: as the teacher served it; hidden_fp8: e4m3 with a power of two as scale of a token;
    top_k: the likeliest ids with their log-probabilities, and the mass of the rest; sampled: the
    ids that were drawn, how often, and their log-probabilities."""
    top_k: Annotated[int, Field(ge=1, lt=1 << 24)] | None = None
    log_prob_bits: Literal[8, 16] | None = None
    num_draws: Annotated[int, Field(ge=1, le=MAX_DRAWS)] | None = None

    @model_validator(mode="after")
    def _has_its_parameters(self) -> Self:
        needed = {
            "top_k": self.name == "top_k",
            "log_prob_bits": self.name in ("top_k", "sampled"),
            "num_draws": self.name == "sampled",
        }
        for field, is_needed in needed.items():
            if (getattr(self, field) is not None) != is_needed:
                word = "needs" if is_needed else "has no"
                raise ValueError(f"format {self.name} {word} {field}")
        return self

    @property
    def is_exact(self) -> bool:
        """True if a run from the record computes what it would with the teacher."""
        return self.name == "hidden"

    @property
    def representation(self) -> Representation:
        """What to ask the teacher for, without a seed."""
        kind = "hidden" if self.name == "hidden_fp8" else self.name
        return Representation(kind, top_k=self.top_k, num_draws=self.num_draws)

    def row_bytes(self, vocab_size: int, hidden_size: int, hidden_dtype: str) -> int | None:
        """Returns the bytes of each row; None if they differ."""
        if self.name == "hidden":
            return hidden_size * CARRIERS[hidden_dtype].itemsize
        if self.name == "hidden_fp8":
            return hidden_size + 1
        if self.name == "sampled":
            return None
        k = self.top_k or 0
        ids = packed_bytes(k, bits_per_id(vocab_size))
        return ids + k * (self.log_prob_bits or 0) // 8 + 4


class RecordFile(_Frozen):
    """A file of a record, by its path in it."""

    path: Annotated[str, Field(max_length=200)]
    bytes: _Count
    sha256: Sha256


class RecordPart(_Frozen):
    """The answers to one question: a format at a temperature, and with draws, one set of them."""

    name: Annotated[str, Field(pattern=_PART_NAME.pattern)]
    """Of its folder."""
    format: RecordFormat
    temperature: Annotated[float, Field(gt=0)] | None
    """That log-probabilities are at; null for hidden states, which hold for any."""
    draw_set: _Count | None = None
    """Which set of draws it is, from 0, and the seed that the teacher drew it with; null without
    draws."""
    sequences: Annotated[int, Field(ge=1, lt=1 << 40)]
    rows: Annotated[int, Field(ge=1, lt=1 << 50)]

    @model_validator(mode="after")
    def _only_draws_have_sets(self) -> Self:
        is_sampled = self.format.name == "sampled"
        if is_sampled != (self.draw_set is not None):
            raise ValueError("draw_set belongs to the format sampled")
        has_temperature = self.temperature is not None
        if has_temperature != (self.format.name in ("top_k", "sampled")):
            raise ValueError("temperature belongs to the formats top_k and sampled")
        return self


class RecordContexts(_Frozen):
    """How the data was cut into the sequences that the teacher was asked about."""

    data_path: str
    """As the spec names the dataset."""
    data_sha256s: list[str]
    """Of its files: ShardManifest.hashes."""
    seq_len: Annotated[int, Field(ge=1)]
    attention_across_documents: bool
    packs_chats: bool


class RecordFacts(_Frozen):
    """What is known of a record before its rows are: of which teacher, over which data."""

    model_id: str
    fingerprint: Sha256
    weights_sha256: str
    tokenizer_sha256: str
    """Of the teacher's token-to-id map."""
    vocab_size: Annotated[int, Field(ge=1, le=1 << 32)]
    """V: log-probabilities are over ids 0 to V - 1, and the head has that many rows."""
    hidden_size: _Count
    hidden_dtype: HiddenDtype
    contexts: RecordContexts
    producer_version: str


class RecordManifest(RecordFacts):
    """manifest.json; checked when a record is opened, never trusted."""

    schema_version: Annotated[Literal["lectern-record-v1"], Field(alias="schema")]
    parts: Annotated[list[RecordPart], Field(min_length=1, max_length=1000)]
    files: list[RecordFile]
    """All others of the record, in order of their paths."""

    @model_validator(mode="after")
    def _parts_have_their_files(self) -> Self:
        names = [part.name for part in self.parts]
        if len(set(names)) != len(names):
            raise ValueError("two parts have one name")
        there = [file.path for file in self.files]
        needed = [f"{name}/{file}" for name in names for file in PART_FILES]
        needed += [TEACHER_NAME, TOKENIZER_MAP_NAME]
        if any(part.format.representation.format.needs_head for part in self.parts):
            needed.append(HEAD_NAME)
        if sorted(there) != sorted(needed):
            raise ValueError("files are not those of its parts")
        return self

    def file(self, path: str) -> RecordFile:
        return next(file for file in self.files if file.path == path)

    @property
    def total_bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def is_record(folder: Path) -> bool:
    """Returns whether a folder's manifest is a record's, of any version, intact or not."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    return isinstance(schema, str) and schema.startswith(_SCHEMAS)


def require_record(folder: Path) -> None:
    """Raises Conflict unless a folder is a record, intact or not."""
    if not is_record(folder):
        raise Conflict(f"{folder} is not a record")


def read_record_manifest(record: Path) -> RecordManifest:
    """Returns the manifest of a record folder.

    Raises:
        NotFound: no such folder, or no manifest in it.
        CorruptData: the manifest does not follow the schema.
    """
    path = record / MANIFEST_NAME
    try:
        return RecordManifest.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(
            f"no record at {record} ({MANIFEST_NAME} is missing); make one with "
            "`lectern precompute`"
        ) from None
    except ValidationError as error:
        # Of another version, all else may differ too.
        first = min(error.errors(), key=lambda one: one["loc"] != ("schema",))
        field = ".".join(str(part) for part in first["loc"])
        raise CorruptData(f"{path}: {field}: {first['msg']}") from None
