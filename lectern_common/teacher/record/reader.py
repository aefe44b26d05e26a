"""Opens a record and finds the rows of sequences in it. No torch.

What is read whole is checked against the manifest's hashes when the record is opened; the rows,
which may be larger than memory, each against their checksum when they are read.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from lectern_common.errors import (
    CorruptData,
    DataUnavailable,
    NotFound,
    RepresentationNotOffered,
)
from lectern_common.roots import folders_with
from lectern_common.teacher.record.index import SequenceIndex, checksum, covered, sequence_key
from lectern_common.teacher.record.manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    MASKS_NAME,
    ROWS_NAME,
    TEACHER_NAME,
    TOKENIZER_MAP_NAME,
    RecordFormat,
    RecordManifest,
    RecordPart,
    read_record_manifest,
)
from lectern_common.tokens.shards import ShardFile
from lectern_common.wire.formats import pack_mask, unpack_mask
from protos import teacher_pb2


@dataclass(frozen=True)
class RecordedRows:
    """A sequence's rows as stored, and which of them are asked for: bool [num_rows]."""

    data: npt.NDArray[np.uint8]
    num_rows: int
    asked: npt.NDArray[np.bool_]


class PartReader:
    """One part of an open record. Safe to call from several threads."""

    def __init__(self, folder: Path, part: RecordPart) -> None:
        """Raises CorruptData unless index and masks are what its entry in the manifest says."""
        self.part = part
        self._folder = folder
        self._index = SequenceIndex(folder / INDEX_NAME)
        self._masks = ShardFile(folder / MASKS_NAME, "u1")
        self._rows = ShardFile(folder / ROWS_NAME, "u1")
        if (self._index.sequences, self._index.rows) != (part.sequences, part.rows):
            raise CorruptData(f"{folder / INDEX_NAME} does not have the sequences and rows of it")

    def read(
        self, ids_S: npt.NDArray[np.uint32], asked_S: npt.NDArray[np.bool_]
    ) -> RecordedRows | None:
        """Returns the rows of a sequence; None if they, or some of those asked for, are not there.

        Raises:
            CorruptData: what is there is not what was written.
            DataUnavailable: it cannot be read.
        """
        entry = self._holding(ids_S, asked_S)
        if entry is None:
            return None
        num_tokens = int(entry["num_tokens"])
        data, mask = self._data(entry, ids_S)
        recorded_S = unpack_mask(mask, num_tokens)
        return RecordedRows(data, int(entry["num_rows"]), asked_S[:num_tokens][recorded_S])

    def exact(
        self, ids_S: npt.NDArray[np.uint32], asked_S: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.uint8] | None:
        """Returns the bytes recorded for a sequence with just these positions, or None.

        Raises:
            CorruptData, DataUnavailable: see `read`.
        """
        wanted = mask_bytes(ids_S, asked_S)
        for entry in self._index.find(sequence_key(ids_S, asked_S)):
            if self._mask(entry) == wanted:
                return self._data(entry, ids_S)[0]
        return None

    def has(self, ids_S: npt.NDArray[np.uint32], asked_S: npt.NDArray[np.bool_]) -> bool:
        """Returns whether all rows asked for are there, without reading them."""
        return self._holding(ids_S, asked_S) is not None

    def _holding(
        self, ids_S: npt.NDArray[np.uint32], asked_S: npt.NDArray[np.bool_]
    ) -> np.void | None:
        """Returns the first entry of these tokens with all rows asked for, or None."""
        num_tokens = len(covered(ids_S, asked_S))
        for entry in self._index.find(sequence_key(ids_S, asked_S)):
            if int(entry["num_tokens"]) != num_tokens:
                raise CorruptData(f"{self._folder / INDEX_NAME} counts other tokens than it hashes")
            recorded_S = unpack_mask(self._mask(entry), num_tokens)
            if not bool((asked_S[:num_tokens] & ~recorded_S).any()):
                found: np.void = entry
                return found
        return None

    def _data(
        self, entry: np.void, ids_S: npt.NDArray[np.uint32]
    ) -> tuple[npt.NDArray[np.uint8], bytes]:
        """Returns the rows and the mask of an entry. Raises CorruptData if they are damaged."""
        mask, first = self._mask(entry), int(entry["first_byte"])
        data: npt.NDArray[np.uint8] = self._rows[first : first + int(entry["num_bytes"])]
        if checksum(data.data, mask) != int(entry["crc32"]):
            raise CorruptData(
                f"the rows of the sequence {_words(ids_S)} in {self._folder / ROWS_NAME} are "
                "damaged; restore the record from a copy, or delete it and make it again"
            )
        return data, mask

    def _mask(self, entry: np.void) -> bytes:
        first = int(entry["mask_byte"])
        mask: bytes = self._masks[first : first + (int(entry["num_tokens"]) + 7) // 8].tobytes()
        return mask


class RecordReader:
    """An open record.

    Args:
        folder: of the record.

    Raises:
        NotFound: there is none.
        CorruptData: a file is not what the manifest says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_record_manifest(folder)
        require_sizes(folder, self.manifest)
        self.model = _teacher_of(folder, self.manifest)
        self._parts = []
        for part in self.manifest.parts:
            for name in (INDEX_NAME, MASKS_NAME):
                require_hash(folder, self.manifest, f"{part.name}/{name}")
            self._parts.append(PartReader(folder / part.name, part))

    def tokenizer_map(self) -> dict[str, int]:
        """Returns the teacher's token-to-id map. Raises CorruptData."""
        require_hash(self.folder, self.manifest, TOKENIZER_MAP_NAME)
        found: dict[str, int] = json.loads((self.folder / TOKENIZER_MAP_NAME).read_bytes())
        return found

    def parts(self, kind: str, temperature: float) -> list[PartReader]:
        """Returns the parts that hold answers in a representation, in order of their draws.

        Args:
            kind: of the representation.
            temperature: at which they must hold.

        Raises:
            RepresentationNotOffered: there is none; the message says what there is.
        """
        found = [
            reader
            for reader in self._parts
            if reader.part.format.representation.kind == kind
            and reader.part.temperature in (None, temperature)
        ]
        if not found:
            there = "; ".join(described(reader.part) for reader in self._parts)
            raise RepresentationNotOffered(
                f"the record {self.folder.name} has no {kind} at temperature {temperature:g}; it "
                f"has {there}: change teacher.representation or objective.temperature, or make "
                "another record"
            )
        return sorted(found, key=lambda reader: reader.part.draw_set or 0)


def described(part: RecordPart) -> str:
    """Describes a part in a few words, such as "top_k 64 at temperature 2"."""
    words: list[str] = [part.format.name]
    words += [str(n) for n in (part.format.top_k, part.format.num_draws) if n is not None]
    if part.temperature is not None:
        words.append(f"at temperature {part.temperature:g}")
    return " ".join(words)


def formats_of(manifest: RecordManifest) -> list[RecordFormat]:
    """Returns each format of the parts once, in order."""
    found: dict[str, RecordFormat] = {}
    for part in manifest.parts:
        found.setdefault(part.format.model_dump_json(), part.format)
    return list(found.values())


def records_in(data_root: Path) -> list[str]:
    """Returns the names of the finished records in a data root, in order."""
    found: list[str] = []
    for folder in folders_with(data_root, MANIFEST_NAME):
        try:
            read_record_manifest(folder)
        except (CorruptData, NotFound, OSError):
            continue  # a dataset's, or a damaged one
        found.append(str(folder.relative_to(data_root)))
    return found


def require_sizes(folder: Path, manifest: RecordManifest) -> None:
    """Raises CorruptData unless every file is there with the bytes that the manifest says."""
    for file in manifest.files:
        path = folder / file.path
        try:
            size = path.stat().st_size
        except OSError as error:
            raise CorruptData(f"cannot read {path}: {error.strerror}; restore it") from None
        if size != file.bytes:
            raise CorruptData(
                f"{path} has {size} bytes, but the record's manifest says {file.bytes}; restore "
                "it, or delete the record and make it again"
            )


def require_hash(folder: Path, manifest: RecordManifest, path: str) -> None:
    """Raises CorruptData unless a file has the hash that the manifest says."""
    if file_sha256(folder / path) != manifest.file(path).sha256:
        raise CorruptData(
            f"{folder / path} is not what the record's manifest says; restore it, or delete the "
            "record and make it again"
        )


def require_intact_record(folder: Path, manifest: RecordManifest) -> None:
    """Reads a record whole. Raises CorruptData unless it is what its manifest says."""
    require_sizes(folder, manifest)
    for file in manifest.files:
        require_hash(folder, manifest, file.path)


def file_sha256(path: Path) -> str:
    """Returns the hex SHA-256 of a file. Raises DataUnavailable if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataUnavailable(f"cannot read {path}: {error.strerror}") from None


def mask_bytes(ids_S: npt.NDArray[np.uint32], asked_S: npt.NDArray[np.bool_]) -> bytes:
    """Returns the mask of a sequence as masks.bin has it."""
    return pack_mask(asked_S[: len(covered(ids_S, asked_S))])


def _teacher_of(folder: Path, manifest: RecordManifest) -> teacher_pb2.Model:
    require_hash(folder, manifest, TEACHER_NAME)
    try:
        model = teacher_pb2.Model.FromString((folder / TEACHER_NAME).read_bytes())
    except DecodeError:
        raise CorruptData(f"{folder / TEACHER_NAME} does not describe a teacher") from None
    if model.fingerprint != manifest.fingerprint:
        raise CorruptData(f"{folder / TEACHER_NAME} describes another teacher than the manifest")
    return model


def _words(ids_S: Sequence[Any] | npt.NDArray[np.uint32]) -> str:
    """Names a sequence by its first tokens."""
    first = ", ".join(str(int(token)) for token in ids_S[:8])
    return f"[{first}{', ...' if len(ids_S) > 8 else ''}] ({len(ids_S)} tokens)"
