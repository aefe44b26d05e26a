"""Token shards on disk: what `lectern data prepare` writes and every process reads. No torch.

DATASET/shard-00000.bin ...   flat uint32 little-endian token ids, no header
DATASET/mask-00000.bin ...    one byte per token of the shard with the same number: 1 if the token
                              is learnt (in chats: the assistant's; in texts: all but the token
                              that begins each), else 0; optional
DATASET/documents.bin         flat uint64 little-endian: the index of each document's first token,
                              rising from 0; optional
DATASET/chats.bin             the same of each chat's first document: its index in documents.bin;
                              only if a chat has several, one for each answer
DATASET/manifest.json         ShardManifest (schema pretokenize-bin-v1)
DATASET/tokenizer.json        the tokenizer that made the ids, with the other files of it beside

A prompt set is such a folder whose documents are prompts: prompt_sets.py.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lectern_common.errors import CorruptData, DataUnavailable, InvalidRequest, NotFound
from lectern_common.words import inert_name

MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.json"
DOCUMENTS_NAME = "documents.bin"
CHATS_NAME = "chats.bin"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# Values of a file in memory at a time.
_BLOCK_VALUES = 1 << 22


class ShardManifest(BaseModel):
    """manifest.json; checked when a dataset is opened, never trusted."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    schema_version: Annotated[Literal["pretokenize-bin-v1"], Field(alias="schema")]
    tokenizer_sha256: Sha256
    """Of the token-to-id map, as in tokenizer_map.py."""
    corpus_sha256: Sha256
    """Of all shard bytes in shard order."""
    shard_count: Annotated[int, Field(ge=1)]
    total_tokens: Annotated[int, Field(ge=1)]
    vocab_size: Annotated[int, Field(ge=1, le=1 << 32)]
    """All ids are below it."""
    eos_policy: Literal["none", "between", "after"]
    """Where eos_token_id stands: nowhere, between documents, after each document."""
    eos_token_id: int | None
    seq_length_hint: Annotated[int, Field(ge=1)] | None
    producer_version: str
    producer_sha256: str
    """Of the producer's settings and source files."""
    document_count: Annotated[int, Field(ge=1)] | None = None
    """Entries in documents.bin; None means that document starts are unknown."""
    documents_sha256: Sha256 | None = None
    """Of documents.bin."""
    chat_count: Annotated[int, Field(ge=1)] | None = None
    """Entries in chats.bin; None means that each document is a chat, or that nothing is known."""
    chats_sha256: Sha256 | None = None
    """Of chats.bin."""
    mask_sha256: Sha256 | None = None
    """Of all mask bytes in shard order; None means no mask: every token is learnt."""
    content: Literal["text", "chats", "prompts"] | None = None
    """What a document is; None in older datasets, where a mask means chats. A folder of prompts is
    a prompt set: it is continued, never learnt."""
    bos_policy: Literal["none", "document", "row"] = "none"
    """Where bos_token_id stands: nowhere, at the start of each document, or at the start of each
    row, where only a run can put it: then it is not in the shards."""
    bos_token_id: int | None = None
    rendered_date: str | None = None
    """The date that a chat template was told, as YYYY-MM-DD; None if it was told none."""

    @model_validator(mode="after")
    def _document_fields_go_together(self) -> "ShardManifest":
        if (self.document_count is None) != (self.documents_sha256 is None):
            raise ValueError("document_count and documents_sha256 go together")
        if (self.chat_count is None) != (self.chats_sha256 is None):
            raise ValueError("chat_count and chats_sha256 go together")
        if self.chats_sha256 is not None and self.documents_sha256 is None:
            raise ValueError("chats_sha256 needs documents_sha256")
        return self

    @model_validator(mode="after")
    def _a_row_begins_with_a_known_id(self) -> "ShardManifest":
        known = self.bos_token_id is not None and self.bos_token_id < self.vocab_size
        if self.bos_policy == "row" and not known:
            raise ValueError("bos_policy row needs a bos_token_id below vocab_size")
        return self

    @model_validator(mode="after")
    def _prompts_are_told_apart(self) -> "ShardManifest":
        if self.is_prompts and self.documents_sha256 is None:
            raise ValueError("content prompts needs documents_sha256")
        if self.is_prompts and self.mask_sha256 is not None:
            raise ValueError("content prompts has no mask_sha256: nothing of a prompt is learnt")
        return self

    @property
    def is_prompts(self) -> bool:
        """True if each document is a prompt, so that the folder is not a dataset to train on."""
        return self.content == "prompts"

    @property
    def holds(self) -> Literal["text", "chats", "prompts"]:
        """What a document is."""
        if self.content is None:
            return "text" if self.mask_sha256 is None else "chats"
        return self.content

    @property
    def is_chats(self) -> bool:
        """True if each document is a chat."""
        return self.holds == "chats"

    def as_text(self) -> "ShardManifest":
        """Returns it as a run reads it that began before chats were packed: as one stream."""
        return self.model_copy(update={"content": "text"})

    @property
    def row_bos_id(self) -> int | None:
        """The id that a run puts before the tokens of each row; None means none."""
        return self.bos_token_id if self.bos_policy == "row" else None

    @property
    def hashes(self) -> list[str]:
        """The hashes of all data files, and the token that begins rows, if there is one.

        Equal lists mean equal rows.
        """
        found = [self.corpus_sha256, self.mask_sha256, self.documents_sha256, self.chats_sha256]
        if self.row_bos_id is not None:
            found.append(f"row begins with {self.row_bos_id}")
        return [digest for digest in found if digest is not None]


class ShardFile(Sequence[Any]):
    """The numbers in one file, read when sliced; the file must not change after it is opened.

    Not a memory map: if a mapped file is truncated, its reader dies of SIGBUS without a message.
    The file is reopened for every read, so that a dataset may have more shards than a process may
    have open files, and a replaced file is noticed.
    """

    def __init__(self, path: Path, dtype: str) -> None:
        """Raises CorruptData if it is missing, empty, or not a whole number of values."""
        self._path = path
        self._dtype = np.dtype(dtype)
        try:
            self._facts = _facts(path.stat())
        except FileNotFoundError:
            raise CorruptData(f"{path} is missing, but the manifest counts it") from None
        size = self._facts[1]
        if size == 0 or size % self._dtype.itemsize:
            raise CorruptData(
                f"{path} has {size} bytes, not a positive multiple of {self._dtype.itemsize}"
            )

    def __len__(self) -> int:
        return self._facts[1] // self._dtype.itemsize

    def __getitem__(self, cut: Any) -> Any:
        """Returns the values of a slice with step 1 as a new array.

        Raises:
            DataUnavailable: the file changed, is gone, or cannot be read.
        """
        start, stop, step = cut.indices(len(self))
        if step != 1:
            raise ValueError("a shard file can only be sliced with step 1")
        width = self._dtype.itemsize
        try:
            with self._path.open("rb", buffering=0) as file:
                if _facts(os.fstat(file.fileno())) != self._facts:
                    raise DataUnavailable(
                        f"{self._path} changed while the run was reading it; restore it, then "
                        "resume the run"
                    )
                data = os.pread(file.fileno(), max(0, stop - start) * width, start * width)
        except OSError as error:
            raise DataUnavailable(
                f"cannot read {self._path}: {error.strerror}; resume the run once it is readable "
                "again"
            ) from None
        if len(data) != max(0, stop - start) * width:
            raise DataUnavailable(f"{self._path} was truncated; restore it, then resume the run")
        return np.frombuffer(data, self._dtype)


def shard_path(dataset: Path, index: int) -> Path:
    return dataset / f"shard-{index:05d}.bin"


def mask_path(dataset: Path, index: int) -> Path:
    return dataset / f"mask-{index:05d}.bin"


def read_manifest(dataset: Path) -> ShardManifest:
    """Returns the manifest of a dataset folder.

    Raises:
        NotFound: no such folder, or no manifest in it.
        CorruptData: the manifest does not follow the schema.
        InvalidRequest: the folder is a prompt set.
    """
    manifest = read_any_manifest(dataset)
    if manifest.is_prompts:
        raise InvalidRequest(
            f"{inert_name(dataset)} is a prompt set, of which nothing is learnt; name it in "
            "rollout.prompts, or prepare its text without --prompts"
        )
    return manifest


def read_any_manifest(dataset: Path) -> ShardManifest:
    """Returns the manifest of a folder that is a dataset or a prompt set.

    Raises:
        NotFound, CorruptData: as read_manifest says.
    """
    try:
        return ShardManifest.model_validate_json((dataset / MANIFEST_NAME).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(
            f"no dataset at {dataset} ({MANIFEST_NAME} is missing); "
            "make one with `lectern data prepare`"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise CorruptData(f"{dataset / MANIFEST_NAME}: {field}: {first['msg']}") from None


def open_shards(dataset: Path, manifest: ShardManifest) -> list[ShardFile]:
    """Returns the shards, uint32, sizes checked against the manifest.

    Raises:
        CorruptData: a shard is missing or not a multiple of 4 bytes, or the token count differs.
    """
    shards = [ShardFile(shard_path(dataset, i), "<u4") for i in range(manifest.shard_count)]
    total = sum(len(shard) for shard in shards)
    if total != manifest.total_tokens:
        raise CorruptData(
            f"{dataset} holds {total} tokens, but its manifest says {manifest.total_tokens}"
        )
    return shards


def open_masks(dataset: Path, manifest: ShardManifest) -> list[ShardFile] | None:
    """Returns the mask, uint8, file by file; None if the dataset has none.

    Raises:
        CorruptData: a file is missing, or together they do not have one byte per token.
    """
    if manifest.mask_sha256 is None:
        return None
    masks = [ShardFile(mask_path(dataset, i), "u1") for i in range(manifest.shard_count)]
    total = sum(len(mask) for mask in masks)
    if total != manifest.total_tokens:
        raise CorruptData(
            f"{dataset} has a mask of {total} tokens, but its manifest says {manifest.total_tokens}"
        )
    return masks


def require_intact(dataset: Path) -> None:
    """Reads a dataset or prompt set whole. Raises CorruptData unless it is as its manifest says."""
    manifest = read_any_manifest(dataset)
    masks = open_masks(dataset, manifest)
    digests = [("shards", corpus_sha256(open_shards(dataset, manifest)), manifest.corpus_sha256)]
    if masks is not None:
        digests.append(("masks", corpus_sha256(masks), manifest.mask_sha256 or ""))
    for what, found, expected in digests:
        if found != expected:
            raise CorruptData(f"the {what} in {dataset} do not match its manifest; restore them")
    read_document_starts(dataset, manifest)
    read_chat_numbers(dataset, manifest)


def read_document_starts(dataset: Path, manifest: ShardManifest) -> npt.NDArray[np.int64] | None:
    """Returns the index of each document's first token, rising from 0; None if unknown.

    Raises:
        CorruptData: documents.bin is missing, or does not match the manifest.
    """
    if manifest.documents_sha256 is None:
        return None
    path, count = dataset / DOCUMENTS_NAME, manifest.document_count or 0
    return _rising(path, manifest.documents_sha256, count, manifest.total_tokens, "token positions")


def read_chat_numbers(dataset: Path, manifest: ShardManifest) -> npt.NDArray[np.int64] | None:
    """Returns which chat each document is of, rising from 0; None if each is one by itself.

    Raises:
        CorruptData: chats.bin is missing, or does not match the manifest.
    """
    if manifest.chats_sha256 is None:
        return None
    path, documents = dataset / CHATS_NAME, manifest.document_count or 0
    count = manifest.chat_count or 0
    firsts = _rising(path, manifest.chats_sha256, count, documents, "document numbers")
    return np.repeat(np.arange(count), np.diff(np.append(firsts, documents)))


def _rising(path: Path, sha256: str, count: int, below: int, what: str) -> npt.NDArray[np.int64]:
    """Returns the `count` numbers in a file, which begin at 0, rise, and stay below `below`."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CorruptData(f"{path} is missing, but the manifest has its hash") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CorruptData(f"{path} does not match its manifest; prepare the data again")
    numbers = np.frombuffer(data[: len(data) // 8 * 8], "<u8").astype(np.int64)
    is_rising = len(data) == 8 * count and numbers[0] == 0 and (np.diff(numbers) > 0).all()
    if not is_rising or numbers[-1] >= below:
        raise CorruptData(f"{path} does not hold rising {what} from 0")
    return numbers


def blocks_of(
    files: Sequence[Any], size: int | None = None
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Yields (index of its first value, values) of each block of the files, in order.

    A block has at most `size` values (4 million), all of one file.
    """
    before, size = 0, size or _BLOCK_VALUES
    for file in files:
        for first in range(0, len(file), size):
            yield before + first, file[first : first + size]
        before += len(file)


def corpus_sha256(shards: Sequence[Any]) -> str:
    """Returns the hex SHA-256 over all shard bytes in order."""
    digest = hashlib.sha256()
    for _, block in blocks_of(shards):
        digest.update(block.tobytes())
    return digest.hexdigest()


def _facts(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns
