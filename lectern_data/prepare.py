"""Prepares a dataset or a prompt set: from text to token shards, in seven steps. No torch.

    prepare()                                                             settings.py
      1. streams the rows of a hub dataset into a local file              found.py, hub.py
      2. finds, checks and hashes every document                          input_files.py, scan.py
      3. splits them, by document, into training and validation           document_split.py
      4. trains the tokenizer on the training part, or loads the given    tokenizer.py
      5. cuts them into pieces, tokenised by several processes            pieces.py, tokenizing.py
      6. assembles each part in a hidden folder beside its target         written_parts.py
      7. renames both into place                                          publish.py

The result depends only on the texts, their names inside the inputs, and the settings: two runs
write the same bytes with any number of processes. The results of 1, 4 and 5 stay in a hidden folder
beside the dataset until it is complete, so after a kill at any time the same call continues.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from lectern_common.checks.row_counts import shares_of
from lectern_common.errors import InvalidRequest
from lectern_common.files import new_folder
from lectern_common.tokens.chat_rows import ChatShares, LongChats
from lectern_common.tokens.prompt_sets import prompt_facts
from lectern_common.tokens.shards import TOKENIZER_NAME, read_manifest
from lectern_common.tokens.tokenizer_map import tokenizer_sha256
from lectern_common.words import counted
from lectern_data.document_split import split, unlike_the_wanted
from lectern_data.found import Found, found_documents
from lectern_data.left_out import Faults
from lectern_data.read.documents import Document, LeftOut, texts_of
from lectern_data.settings import PrepareSettings, Progress
from lectern_data.tokens.bos_policy import DocumentStart, document_start
from lectern_data.tokens.document_end import DocumentEnd
from lectern_data.tokens.encoder import EncoderFiles
from lectern_data.tokens.pieces import Piece, cut, piece_left_out, read_piece
from lectern_data.tokens.tokenizer import (
    TRAINED_AS,
    DatasetTokenizer,
    load_tokenizer,
    train_tokenizer,
)
from lectern_data.tokens.tokenizing import default_workers, tokenize
from lectern_data.write.publish import published
from lectern_data.write.work_folder import Work, work_folder
from lectern_data.write.written_parts import Layout, Part, write_part

# Row lengths for which the shares of chats are told, with what a run may do with longer ones.
TOLD_SEQ_LENS = (512, 1024, 2048)


@dataclass(frozen=True)
class Prepared:
    """The result of `prepare`.

    `chat_shares` says what rows of common lengths will make of the training set's chats, first with
    `data.long_chats` cut, then with drop; it is empty for text. `longest_prompt`, in tokens, is of
    a prompt set, which is the `training` part; None for datasets.
    """

    training: Part
    validation: Part | None
    vocab_size: int
    tokenizer_sha256: str
    eos_token_id: int | None
    eos_token: str | None
    eos_from: str | None
    """Where the choice of the end-of-text token comes from, for people."""
    bos_policy: str
    bos_token_id: int | None
    bos_token: str | None
    bos_from: str
    left_out: list[LeftOut]
    chat_shares: list[ChatShares]
    longest_prompt: int | None
    seconds: float


def prepare(
    settings: PrepareSettings,
    *,
    on_progress: Progress = lambda stage, done, total: None,
    on_event: Callable[[str], None] = lambda sentence: None,
) -> Prepared:
    """Writes the datasets `output` and `output`-validation; both appear whole or not at all.

    Of prompts, only `output` is written, and nothing is held out.

    Args:
        settings: the inputs and how to prepare them.
        on_progress: see Progress.
        on_event: called with one sentence about each event that a person should know of.

    Raises:
        InvalidRequest: nothing usable in the inputs, or a tokenizer that does not fit the settings.
        NotFound: an input, the tokenizer or the hub dataset does not exist.
        Conflict: the output exists as a dataset or as something else, or another process is
            preparing it.
        CorruptData: a file changed while it was read, or the tokenizer is broken.
        Misconfigured: the inputs need a package that is not installed.
        LecternError: a tokenising process died repeatedly, or the hub's stream broke.
    """
    started = time.monotonic()
    given = given_tokenizer(settings)
    with (
        work_folder(settings.output) as work,
        published(settings.targets, replace=settings.force) as folders,
    ):
        found = found_documents(settings, given, work, on_progress, on_event)
        documents, left_out = found.documents, found.left_out
        used_endings = {path.suffix for path in {entry.path for entry in documents}}
        faults = Faults(settings.max_fault_fraction, len(documents), left_out, used_endings)
        faults.require_few()
        parts = split(documents, settings.validation_fraction, settings.seed)
        if unlike := unlike_the_wanted(parts, settings.validation_fraction):
            on_event(unlike)
        tokenizer = given or _trained_tokenizer(settings, work, parts[0], on_progress)
        start = document_start(settings.bos_policy, tokenizer, is_chat=settings.content.is_chat)
        end = None if settings.eos_policy == "none" else tokenizer.end
        if end is not None and not end.is_certain:
            on_event(f"documents end in {end.text} ({end.why})")
        encoder = _encoder_files(work, tokenizer, found)
        pieces = _tokenized(settings, work, encoder, parts, faults, on_progress, on_event)
        left_out += _left_out_last(settings, work, pieces)
        _report_pieces(work, pieces, on_event)
        layout = replace(
            settings.layout,
            bos_policy=start.policy,
            bos_token_id=start.token_id,
            rendered_date=found.date,
        )
        written = _written_parts(settings, layout, work, tokenizer, pieces, folders, on_progress)
        work.is_needed = False
    return _prepared(settings, tokenizer, start, end, written, left_out, started)


def _prepared(
    settings: PrepareSettings,
    tokenizer: DatasetTokenizer,
    start: DocumentStart,
    end: DocumentEnd | None,
    written: list[Part],
    left_out: list[LeftOut],
    started: float,
) -> Prepared:
    return Prepared(
        training=written[0],
        validation=written[1] if len(written) > 1 else None,
        vocab_size=tokenizer.vocab_size,
        tokenizer_sha256=tokenizer_sha256(tokenizer.tokens),
        eos_token_id=None if end is None else end.token_id,
        eos_token=None if end is None else end.text,
        eos_from=None if end is None else end.why,
        bos_policy=written[0].bos_policy,
        bos_token_id=written[0].bos_token_id,
        bos_token=_text_of(written[0].bos_token_id, tokenizer),
        bos_from=start.why,
        left_out=left_out,
        chat_shares=_chat_shares(settings.output) if settings.layout.holds == "chats" else [],
        longest_prompt=_longest_prompt(settings.output) if settings.content.is_prompt else None,
        seconds=time.monotonic() - started,
    )


def _chat_shares(dataset: Path) -> list[ChatShares]:
    rules: tuple[LongChats, ...] = ("cut", "drop")
    wanted = [(seq_len, rule) for rule in rules for seq_len in TOLD_SEQ_LENS]
    return shares_of(dataset, read_manifest(dataset), wanted)


def _longest_prompt(prompt_set: Path) -> int:
    return prompt_facts(prompt_set).longest


def given_tokenizer(settings: PrepareSettings) -> DatasetTokenizer | None:
    """Returns the tokenizer that the settings name; None means that it must be trained.

    Raises:
        NotFound, CorruptData: see load_tokenizer.
        InvalidRequest: it lacks a chat template, or a token that the settings need.
    """
    if settings.tokenizer is None:
        return None
    tokenizer = load_tokenizer(
        settings.tokenizer, settings.eos_token, is_chat=settings.content.is_chat
    )
    document_start(settings.bos_policy, tokenizer, is_chat=settings.content.is_chat)
    if settings.content.is_chat and tokenizer.chat_template is None:
        raise InvalidRequest(
            "the tokenizer has no chat template; put chat_template.jinja beside its tokenizer.json",
            "tokenizer",
        )
    if settings.eos_policy != "none" and tokenizer.eos_token_id is None:
        raise InvalidRequest(
            "the tokenizer does not define an end-of-text token; set --eos-token, or "
            "--eos-policy none",
            "eos_token",
        )
    return tokenizer


def _tokenized(
    settings: PrepareSettings,
    work: Work,
    encoder: EncoderFiles,
    parts: Sequence[list[Document]],
    faults: Faults,
    on_progress: Progress,
    on_event: Callable[[str], None],
) -> list[list[Piece]]:
    """Returns the pieces of each part, each with its file of ids in the work folder.

    Raises:
        InvalidRequest: more chats or prompts are unusable than `faults` allows.
    """
    identity = encoder.sha256()
    pieces = [list(cut(part, identity, settings.piece_bytes)) for part in parts]
    total = sum(len(part) for part in parts)
    done = 0

    def on_done(piece: Piece) -> None:
        nonlocal done
        if settings.content.is_checked_last:
            faults.add(piece_left_out(piece, work.path))
            faults.require_few()
        done += len(piece.documents)
        on_progress("tokenizing", done, total)

    every = [piece for part in pieces for piece in part]
    workers = settings.workers or default_workers()
    tokenize(every, encoder, work.path, workers, on_done, on_event)
    return pieces


def _left_out_last(
    settings: PrepareSettings, work: Work, pieces: list[list[Piece]]
) -> list[LeftOut]:
    """Returns the chats and prompts that could not be encoded, in the order of the pieces."""
    if not settings.content.is_checked_last:
        return []
    return [
        entry for part in pieces for piece in part for entry in piece_left_out(piece, work.path)
    ]


def _report_pieces(work: Work, pieces: list[list[Piece]], on_event: Callable[[str], None]) -> None:
    """Reports how many turns of the assistant are not learnt because nothing asks for them, and
    how many prompts spell control tokens.
    """
    unasked = spelt = 0
    for piece in (piece for part in pieces for piece in part):
        encoded = read_piece(work.path, piece)
        unasked += encoded.unasked
        spelt += encoded.spelt
    if spelt:
        have_has = "has" if spelt == 1 else "have"
        on_event(
            f"{counted(spelt, 'prompt')} {have_has} the spelling of a control token in the text, "
            "which is encoded as characters; to have chats rendered, prepare their messages with "
            "--chat"
        )
    if unasked:
        is_are, them = ("is", "it") if unasked == 1 else ("are", "them")
        on_event(
            f"{counted(unasked, 'message')} of the assistant, at the beginning of a chat, {is_are} "
            f"context only: nothing asks for {them}, so {'they' if unasked > 1 else 'it'} {is_are} "
            "not learnt"
        )


def _written_parts(
    settings: PrepareSettings,
    layout: Layout,
    work: Work,
    tokenizer: DatasetTokenizer,
    pieces: list[list[Piece]],
    folders: list[Path],
    on_progress: Progress,
) -> list[Part]:
    """Writes each part into its folder and returns them; skips a part without pieces."""
    written = pieces[: len(folders)]  # a prompt set has no second part
    return [
        write_part(
            folder,
            target,
            part,
            work.path,
            tokenizer,
            layout,
            partial(on_progress, "writing"),
        )
        for folder, target, part in zip(folders, settings.targets, written, strict=True)
        if part
    ]


def _trained_tokenizer(
    settings: PrepareSettings, work: Work, documents: list[Document], on_progress: Progress
) -> DatasetTokenizer:
    """Returns a tokenizer trained on the documents, or the one trained before a kill."""
    vocab_size, eos_token = settings.train_vocab_size or 0, settings.eos_token
    digest = hashlib.sha256(f"{vocab_size} {eos_token} {TRAINED_AS}".encode())
    for document in documents:
        digest.update(bytes.fromhex(document.sha256))
    folder = work.path / f"tokenizer-{digest.hexdigest()[:32]}"
    if not folder.exists():
        texts = texts_of(documents, settings.content)
        texts = _with_progress(texts, len(documents), partial(on_progress, "tokenizer"))
        trained = train_tokenizer(texts, vocab_size, eos_token)
        with new_folder(folder, work.path / f".{folder.name}", durable=False) as hidden:
            for name, data in trained.files.items():
                (hidden / name).write_bytes(data)
    return load_tokenizer(folder, eos_token)


def _encoder_files(work: Work, tokenizer: DatasetTokenizer, found: Found) -> EncoderFiles:
    """Returns what a process needs to encode; writes its tokenizer to the work folder."""
    path = work.path / TOKENIZER_NAME
    path.write_bytes(tokenizer.tokenizer_json)
    if not found.content.is_chat:
        return EncoderFiles(path, found.content, None, {})
    return EncoderFiles(
        path,
        found.content,
        tokenizer.chat_template,
        tokenizer.special_tokens,
        tokenizer.tool_template,
        found.date,
    )


def _text_of(token_id: int | None, tokenizer: DatasetTokenizer) -> str | None:
    return None if token_id is None else tokenizer.tokenizer.id_to_token(token_id)


def _with_progress(
    texts: Iterator[str], total: int, on_progress: Callable[[int, int], None]
) -> Iterator[str]:
    for number, text in enumerate(texts):
        on_progress(number, total)
        yield text
    on_progress(total, total)
