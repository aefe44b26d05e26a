"""Text to token shards: the work behind `lectern data prepare`. No torch.

    prepare()
      1. streams the rows of a hub's dataset into a file here             hub.py
      2. finds, checks and hashes every document                          input_files.py, scan.py
      3. splits them, by document, into training and validation           document_split.py
      4. trains the tokenizer on the training part, or takes the given    tokenizer.py
      5. cuts them into pieces, tokenised by several processes            pieces.py, tokenizing.py
      6. puts each part together in a hidden folder beside its place      written_parts.py
      7. renames both into place                                          publish.py

The result depends on the texts, their names below the inputs and the settings alone: two runs
write the same bytes, by whatever number of processes. What 1, 4 and 5 have made is kept in a hidden
folder beside the dataset until it is there: killed at any instant, the same call goes on from it.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lectern_common.errors import InvalidRequest
from lectern_common.files import new_folder
from lectern_common.shards import TOKENIZER_NAME
from lectern_common.tokenizer_map import tokenizer_sha256
from lectern_data import hub
from lectern_data.document_split import split
from lectern_data.documents import Document, LeftOut, texts_of
from lectern_data.encoder import EncoderFiles
from lectern_data.faults import Faults
from lectern_data.hub import HubDataset
from lectern_data.input_files import find_files
from lectern_data.pieces import PIECE_BYTES, Piece, cut, piece_left_out
from lectern_data.publish import published
from lectern_data.rows import Content
from lectern_data.scan import MAX_DOCUMENT_BYTES, scan
from lectern_data.tokenizer import DatasetTokenizer, load_tokenizer, train_tokenizer
from lectern_data.tokenizing import default_workers, tokenize
from lectern_data.work_folder import Work, work_folder
from lectern_data.written_parts import EosPolicy, Layout, Part, write_part

DEFAULT_SHARD_TOKENS = 1 << 24
VALIDATION_SUFFIX = "-validation"


@dataclass(frozen=True)
class Prepared:
    """What `prepare` wrote."""

    training: Part
    validation: Part | None
    vocab_size: int
    tokenizer_sha256: str
    eos_token_id: int | None
    left_out: list[LeftOut]
    seconds: float


Progress = Callable[[str, int, int], None]
"""Told (stage, done, total); stages in order: "fetching" (rows), "reading" (bytes), "tokenizer",
"tokenizing" and "writing" (documents)."""


def prepare(
    inputs: list[Path],
    output: Path,
    *,
    hub_dataset: HubDataset | None = None,
    tokenizer: Path | None = None,
    train_vocab_size: int | None = None,
    eos_policy: EosPolicy = "after",
    eos_token: str | None = None,
    validation_fraction: float = 0.01,
    seed: int = 0,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    content: Content | None = None,
    shard_tokens: int = DEFAULT_SHARD_TOKENS,
    seq_length_hint: int | None = None,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    max_fault_fraction: float = 0.01,
    workers: int | None = None,
    piece_bytes: int = PIECE_BYTES,
    force: bool = False,
    on_progress: Progress = lambda stage, done, total: None,
    on_event: Callable[[str], None] = lambda sentence: None,
) -> Prepared:
    """Writes the datasets `output` and `output`-validation; both appear whole or not at all.

    Args:
        inputs: files and folders; .jsonl and Parquet files hold one document a row.
        hub_dataset: a dataset of a hub, read after the inputs.
        tokenizer: a tokenizer.json, or a folder with one. Exactly one of this and
            `train_vocab_size`, which trains a byte-level BPE on the training part.
        validation_fraction: share of the text, in bytes, held out as whole documents; 0 writes no
            validation set. Equal documents always fall on the same side.
        seed: draws which documents are held out.
        content: what a row holds; None: a text under "text". Chats go through the tokenizer's chat
            template, and a mask says which tokens are the assistant's.
        max_document_bytes: a larger document is a fault.
        max_fault_fraction: share of the documents that may be unreadable, not text or too large;
            above it nothing is written.
        workers: processes that tokenise; None: one a core.
        piece_bytes: text that one of them tokenises at a time; what a kill can cost each.
        force: replace datasets of these names.
        on_progress: see Progress.
        on_event: told in a sentence of what a person should know meanwhile.

    Raises:
        InvalidRequest: settings that do not fit together, or nothing usable in the inputs.
        NotFound: an input, the tokenizer or the hub's dataset does not exist.
        Conflict: a dataset of that name exists, or what is there is no dataset, or another process
            is preparing it.
        CorruptData: a file changed while it was read, or the tokenizer is broken.
        Misconfigured: the inputs need a package that is not installed.
        LecternError: a process that tokenises ended again and again, or the hub's stream broke.
    """
    started = time.monotonic()
    content = content or Content()
    workers = default_workers() if workers is None else workers
    _require_fitting(inputs, hub_dataset, tokenizer, train_vocab_size, content)
    if not 0 <= validation_fraction < 1:
        raise InvalidRequest(
            "--validation-fraction must be at least 0 and below 1", "validation_fraction"
        )
    if not 0 <= max_fault_fraction <= 1:
        raise InvalidRequest("--max-fault-fraction must lie from 0 to 1", "max_fault_fraction")
    for name, number in (
        ("workers", workers),
        ("shard_tokens", shard_tokens),
        ("seq_length_hint", seq_length_hint),
        ("max_document_bytes", max_document_bytes),
    ):
        if number is not None and number < 1:
            raise InvalidRequest(f"--{name.replace('_', '-')} must be at least 1", name)
    given = None if tokenizer is None else load_tokenizer(tokenizer, eos_token)
    if given is not None:
        _require_ends_and_template(given, eos_policy, content)
    layout = Layout(eos_policy, shard_tokens, seq_length_hint, content)
    targets = [output, output.with_name(output.name + VALIDATION_SUFFIX)]
    with work_folder(output) as work, published(targets, replace=force) as folders:
        files = find_files(inputs, list(include), list(exclude))
        if hub_dataset is not None:
            fetched = hub.fetch(
                hub_dataset,
                content,
                work.path,
                on_progress=lambda done, total: on_progress("fetching", done, total),
            )
            files.append((fetched.name, fetched.path))
            if fetched.revision is not None:
                on_event(f"{hub_dataset.name} at revision {fetched.revision}")
        documents, left_out = scan(
            files,
            content=content,
            max_document_bytes=max_document_bytes,
            on_progress=lambda done, total: on_progress("reading", done, total),
        )
        faults = Faults(max_fault_fraction, len(documents), left_out)
        faults.require_few()
        parts = split(documents, validation_fraction, seed)
        chosen = given or _trained(
            work, parts[0], content, train_vocab_size or 0, eos_token, on_progress
        )
        encoder = _encoder_files(work, chosen, content)
        identity = encoder.sha256()
        pieces = [list(cut(part, identity, piece_bytes)) for part in parts]
        done = 0

        def on_done(piece: Piece) -> None:
            nonlocal done
            if content.is_chat:
                faults.add(piece_left_out(piece, work.path))
                faults.require_few()
            done += len(piece.documents)
            on_progress("tokenizing", done, len(documents))

        tokenize(pieces[0] + pieces[1], encoder, work.path, workers, on_done, on_event)
        if content.is_chat:
            left_out += [
                entry
                for part in pieces
                for piece in part
                for entry in piece_left_out(piece, work.path)
            ]
        written = [
            write_part(
                folder,
                target,
                part,
                work.path,
                chosen,
                layout,
                lambda done, total: on_progress("writing", done, total),
            )
            for folder, target, part in zip(folders, targets, pieces, strict=True)
            if part
        ]
        work.is_needed = False
    return Prepared(
        training=written[0],
        validation=written[1] if len(written) > 1 else None,
        vocab_size=chosen.vocab_size,
        tokenizer_sha256=tokenizer_sha256(chosen.tokens),
        eos_token_id=None if eos_policy == "none" else chosen.eos_token_id,
        left_out=left_out,
        seconds=time.monotonic() - started,
    )


def _require_fitting(
    inputs: list[Path],
    hub_dataset: HubDataset | None,
    tokenizer: Path | None,
    train_vocab_size: int | None,
    content: Content,
) -> None:
    if not inputs and hub_dataset is None:
        raise InvalidRequest("name files or folders, or a dataset of a hub with --hub", "inputs")
    if (tokenizer is None) == (train_vocab_size is None):
        raise InvalidRequest("set exactly one of --tokenizer and --train-tokenizer", "tokenizer")
    if content.is_chat and tokenizer is None:
        raise InvalidRequest(
            "chats need a tokenizer with a chat template; set --tokenizer instead of "
            "--train-tokenizer",
            "tokenizer",
        )


def _require_ends_and_template(
    tokenizer: DatasetTokenizer, eos_policy: EosPolicy, content: Content
) -> None:
    if content.is_chat and tokenizer.chat_template is None:
        raise InvalidRequest(
            "the tokenizer has no chat template; put chat_template.jinja beside its tokenizer.json",
            "tokenizer",
        )
    if eos_policy != "none" and tokenizer.eos_token_id is None:
        raise InvalidRequest(
            "the tokenizer does not say which token ends a text; set --eos-token, or "
            "--eos-policy none",
            "eos_token",
        )


def _trained(
    work: Work,
    documents: list[Document],
    content: Content,
    vocab_size: int,
    eos_token: str | None,
    on_progress: Progress,
) -> DatasetTokenizer:
    """Returns the tokenizer trained on the documents, kept from before a kill if it was."""
    digest = hashlib.sha256(f"{vocab_size} {eos_token}".encode())
    for document in documents:
        digest.update(bytes.fromhex(document.sha256))
    folder = work.path / f"tokenizer-{digest.hexdigest()[:32]}"
    if not folder.exists():
        texts = _told(texts_of(documents, content), len(documents), "tokenizer", on_progress)
        trained = train_tokenizer(texts, vocab_size, eos_token)
        with new_folder(folder, work.path / f".{folder.name}", durable=False) as hidden:
            for name, data in trained.files.items():
                (hidden / name).write_bytes(data)
    return load_tokenizer(folder, eos_token)


def _encoder_files(work: Work, tokenizer: DatasetTokenizer, content: Content) -> EncoderFiles:
    """Returns what a process needs to encode, its tokenizer in the work folder."""
    template = tokenizer.chat_template if content.is_chat else None
    path = work.path / TOKENIZER_NAME
    path.write_bytes(tokenizer.tokenizer_json)
    special = tokenizer.special_tokens if content.is_chat else {}
    return EncoderFiles(path, content, template, special)


def _told(texts: Iterator[str], total: int, stage: str, on_progress: Progress) -> Iterator[str]:
    for number, text in enumerate(texts):
        on_progress(stage, number, total)
        yield text
    on_progress(stage, total, total)
