"""Assembles a dataset folder from tokenised pieces: shards, masks, manifest and tokenizer."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from lectern_common.errors import InvalidRequest
from lectern_common.tokens.shards import MANIFEST_NAME, ShardManifest
from lectern_common.tokens.tokenizer_map import tokenizer_sha256
from lectern_data.read.documents import Document
from lectern_data.read.rows import Content
from lectern_data.tokens.bos_policy import BosPolicy
from lectern_data.tokens.pieces import EncodedPiece, Piece, read_piece
from lectern_data.tokens.tokenizer import DatasetTokenizer
from lectern_data.write.shard_writer import ShardWriter

EosPolicy = Literal["none", "between", "after"]


@dataclass(frozen=True)
class Part:
    """One written dataset. Of a chat, each answer may be a sequence of its own."""

    path: Path
    documents: int
    sequences: int
    text_bytes: int
    tokens: int
    shards: int
    learnt_tokens: int
    bos_policy: BosPolicy
    bos_token_id: int | None


@dataclass(frozen=True)
class Layout:
    """How ids are laid out in files.

    `content` is what a row held, `rendered_date` what the chat template was told. `bos_token_id`
    begins a text; with `bos_policy` "none" only a chat template may have written it.
    """

    eos_policy: EosPolicy
    shard_tokens: int
    seq_length_hint: int | None
    content: Content
    bos_policy: BosPolicy = "none"
    bos_token_id: int | None = None
    rendered_date: str | None = None

    @property
    def is_masked(self) -> bool:
        """Not every token is learnt: of a chat the assistant's, of a text all but its beginning.

        Of a prompt nothing is, which needs no mask.
        """
        if self.content.is_prompt:
            return False
        return self.content.is_chat or self.bos_policy == "document"

    @property
    def holds(self) -> Literal["text", "chats", "prompts"]:
        """What a document is, as the manifest says it."""
        if self.content.is_prompt:
            return "prompts"
        return "chats" if self.content.is_chat else "text"


def write_part(
    folder: Path,
    target: Path,
    pieces: list[Piece],
    pieces_folder: Path,
    tokenizer: DatasetTokenizer,
    layout: Layout,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Part:
    """Writes the dataset of `pieces`, in order, into `folder`, which becomes `target`.

    Args:
        folder: exists and is empty.
        target: for messages.
        pieces: each has its file in `pieces_folder`.
        pieces_folder: the folder with the files.
        tokenizer: the one that made the ids.
        layout: see Layout.
        on_progress: called with (documents done, documents).

    Raises:
        InvalidRequest: the pieces give no token at all.
        CorruptData: a piece's file is incomplete.
    """
    written = _write_shards(
        folder, target.name, pieces, pieces_folder, tokenizer, layout, on_progress
    )
    manifest = _manifest(written, tokenizer, layout)
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(by_alias=True, indent=2) + "\n")
    for name, content in tokenizer.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return Part(
        path=target,
        documents=len(written.documents),
        sequences=written.fields["document_count"],
        text_bytes=sum(document.text_bytes for document in written.documents),
        tokens=manifest.total_tokens,
        shards=manifest.shard_count,
        learnt_tokens=written.learnt_tokens,
        bos_policy=manifest.bos_policy,
        bos_token_id=manifest.bos_token_id,
    )


@dataclass(frozen=True)
class _Written:
    """The content of the shards. `fields` are the manifest's fields about the files."""

    documents: list[Document]
    learnt_tokens: int
    bos_policy: BosPolicy
    fields: dict[str, Any]


def _write_shards(
    folder: Path,
    name: str,
    pieces: list[Piece],
    pieces_folder: Path,
    tokenizer: DatasetTokenizer,
    layout: Layout,
    on_progress: Callable[[int, int], None],
) -> _Written:
    """Writes the ids of all pieces, masks, and what documents are. Raises like `write_part`."""
    used, done, learnt = list[Document](), 0, 0
    total = sum(len(piece.documents) for piece in pieces)
    eos = _eos_token_id(tokenizer, layout)
    of_chats = tokenizer.tokenizer if layout.content.is_chat else None
    ends = _EndTokens(layout.eos_policy, eos, of_chats)
    beginnings = _BeginTokens(layout)
    with ShardWriter(
        folder, layout.shard_tokens, tokenizer.vocab_size, masked=layout.is_masked
    ) as writer:
        for piece in pieces:
            encoded = read_piece(pieces_folder, piece)
            lost = {index for index, _ in encoded.left_out}
            kept = np.array([index not in lost for index in range(len(piece.documents))], bool)
            used += [entry for entry, is_kept in zip(piece.documents, kept, strict=True) if is_kept]
            if encoded.sequences is not None:  # of those left out there are none
                kept = np.ones(len(encoded.lengths), bool)
            is_cut = np.array([entry.is_cut for entry in piece.documents], bool)
            ids, mask, begins = ends.put_into(encoded, kept, is_cut)
            is_there = np.diff(begins) > 0
            ids, mask, starts = beginnings.put_before(ids, mask, begins[:-1][is_there])
            writer.append(ids, mask, starts, _begins_chat(encoded, is_there))
            if not layout.content.is_prompt:
                learnt += len(ids) if mask is None else int(np.count_nonzero(mask))
            done += len(piece.documents)
            on_progress(done, total)
        if writer.total_tokens == 0:
            raise InvalidRequest(f"the tokenizer makes no tokens from the text of {name}", "inputs")
        return _Written(used, learnt, beginnings.policy, writer.finished())


def _manifest(written: _Written, tokenizer: DatasetTokenizer, layout: Layout) -> ShardManifest:
    return ShardManifest.model_validate(
        {
            "schema": "pretokenize-bin-v1",
            "tokenizer_sha256": tokenizer_sha256(tokenizer.tokens),
            "eos_policy": layout.eos_policy,
            "eos_token_id": _eos_token_id(tokenizer, layout),
            "content": layout.holds,
            "bos_policy": written.bos_policy,
            "bos_token_id": None if written.bos_policy == "none" else layout.bos_token_id,
            "seq_length_hint": layout.seq_length_hint,
            "producer_version": f"lectern {version('lectern')}",
            "producer_sha256": _producer_sha256(written.documents, layout),
            "rendered_date": layout.rendered_date,
            **written.fields,
        }
    )


def _eos_token_id(tokenizer: DatasetTokenizer, layout: Layout) -> int | None:
    """Returns the end-of-text token that the layout inserts; None means that it inserts none."""
    return None if layout.eos_policy == "none" else tokenizer.eos_token_id


class _EndTokens:
    """Inserts the end-of-text tokens between or after documents, piece by piece.

    An end-of-text token belongs to the document that it ends. With a mask it is not learnt: the
    assistant's turn has ended before it. A chat whose template already ends with that token,
    perhaps followed by white space, gets no second one, and a text that was cut gets none. With
    "between", a piece starts with the token that is still due for the document before it.
    """

    def __init__(self, policy: EosPolicy, eos: int | None, chats_of: Tokenizer | None) -> None:
        """`chats_of` is the tokenizer if documents are chats; None means that documents contain no
        control tokens.
        """
        self._policy = policy
        self._eos = eos
        self._chats_of = chats_of
        self._is_owed = False
        self._is_blank = lru_cache(self._blank)

    def put_into(
        self,
        encoded: EncodedPiece,
        kept: npt.NDArray[np.bool_],
        is_cut: npt.NDArray[np.bool_],
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8] | None, npt.NDArray[np.int64]]:
        """Returns a piece's (ids, mask, begins) with end-of-text inserted.

        `kept` is of sequences, `is_cut` of documents, which is the same of texts.

        `begins` has the start of each kept document, and the end; one without tokens has the start
        of the next.
        """
        lengths = encoded.lengths[kept].astype(np.int64)
        begins = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        ids, mask = encoded.ids, encoded.mask
        if self._eos is not None and len(lengths):
            lacks = self._lacks_end(ids, begins)
            if self._chats_of is None:
                lacks &= ~is_cut[kept]
            if self._policy == "after":
                places = begins[1:][lacks]
                moved = np.concatenate([[0], np.cumsum(lacks)])
            else:
                comes_after = np.concatenate([[self._is_owed], lacks[:-1]])
                self._is_owed = bool(lacks[-1])
                places = begins[:-1][comes_after]
                moved = np.cumsum([*comes_after, False])
            ids = np.insert(ids, places, np.uint32(self._eos))
            mask = None if mask is None else np.insert(mask, places, np.uint8(0))
            begins = begins + moved
        return ids, mask, begins

    def _lacks_end(
        self, ids: npt.NDArray[np.uint32], begins: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Returns for each document whether it lacks an end-of-text token of its own."""
        lacks = np.ones(len(begins) - 1, np.bool_)
        if self._chats_of is None:
            return lacks
        places = np.flatnonzero(ids == self._eos)
        befores = np.searchsorted(places, begins[1:]) - 1
        for index, before in enumerate(befores.tolist()):
            if before >= 0 and places[before] >= begins[index]:
                behind = ids[places[before] + 1 : begins[index + 1]]
                lacks[index] = not self._is_blank(tuple(behind.tolist()))
        return lacks

    def _blank(self, ids: tuple[int, ...]) -> bool:
        if self._chats_of is None:
            return not ids
        return not self._chats_of.decode(list(ids), skip_special_tokens=False).strip()


class _BeginTokens:
    """Puts the token that begins a text before each document, and sees where it stands.

    It is never learnt: a model is given it, and nobody asks what comes before a text. A chat that
    its template already begins with it gets no second one.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._all_begin_with_it = True

    @property
    def policy(self) -> BosPolicy:
        """Where the token stands in what has passed, as the manifest says it."""
        if self._layout.bos_policy == "none" and self._layout.bos_token_id is not None:
            return "document" if self._all_begin_with_it else "none"
        return self._layout.bos_policy

    def put_before(
        self,
        ids: npt.NDArray[np.uint32],
        mask: npt.NDArray[np.uint8] | None,
        starts: npt.NDArray[np.int64],
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8] | None, npt.NDArray[np.int64]]:
        """Returns (ids, mask, starts of the documents) of a piece with the token inserted."""
        policy, token_id = self._layout.bos_policy, self._layout.bos_token_id
        if token_id is None or policy == "row":
            return ids, mask, starts
        lacks = np.ones(len(starts), np.bool_)
        if self._layout.content.is_chat:
            lacks = ids[starts] != token_id
        self._all_begin_with_it &= not lacks.any()
        if policy == "none":
            return ids, mask, starts
        places = starts[lacks]
        if self._layout.is_masked:
            learnt = np.ones(len(ids), np.uint8) if mask is None else mask
            mask = np.insert(learnt, places, np.uint8(0))
        return (
            np.insert(ids, places, np.uint32(token_id)),
            mask,
            starts + np.cumsum(lacks) - lacks,
        )


def _begins_chat(
    encoded: EncodedPiece, is_there: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_] | None:
    """Returns whether each sequence with tokens is its chat's first; None if it is a document."""
    if encoded.sequences is None:
        return None
    chat_of = np.repeat(np.arange(len(encoded.sequences)), encoded.sequences)[is_there]
    return np.diff(chat_of, prepend=-1) > 0


def _producer_sha256(documents: list[Document], layout: Layout) -> str:
    """Returns the hash of the settings and of each document's content, in order."""
    digest = hashlib.sha256(json.dumps(asdict(layout), sort_keys=True).encode())
    for document in documents:
        digest.update(bytes.fromhex(document.written_sha256))
        if document.is_cut:
            digest.update(b"cut")
    return digest.hexdigest()
