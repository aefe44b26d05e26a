"""Text to token shards: the work behind `lectern data prepare`. No torch.

    prepare()
      1. finds, checks and hashes every document             documents.py
      2. splits them, by document, into training and validation
      3. trains the tokenizer on the training part, or takes the given one    tokenizer.py
      4. writes each part into a hidden folder beside its place
      5. renames both into place

The result depends on the texts, their names below the inputs and the settings alone: two runs
write the same bytes.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from lectern_cli.documents import MAX_DOCUMENT_BYTES, Document, LeftOut, find_files, scan
from lectern_cli.publish import published
from lectern_cli.shard_writer import ShardWriter
from lectern_cli.tokenizer import CONFIG_NAME, DatasetTokenizer, load_tokenizer, train_tokenizer
from lectern_common.errors import InvalidRequest
from lectern_common.shards import MANIFEST_NAME, TOKENIZER_NAME, ShardManifest
from lectern_common.tokenizer_map import tokenizer_sha256

EosPolicy = Literal["none", "between", "after"]
DEFAULT_SHARD_TOKENS = 1 << 24
VALIDATION_SUFFIX = "-validation"
MAX_NAMED_FAULTS = 10


@dataclass(frozen=True)
class Part:
    """One written dataset."""

    path: Path
    documents: int
    text_bytes: int
    tokens: int
    shards: int


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
"""Told (stage, done, total); stages in order: "reading", "tokenizer", "writing"."""


def prepare(
    inputs: list[Path],
    output: Path,
    *,
    tokenizer: Path | None = None,
    train_vocab_size: int | None = None,
    eos_policy: EosPolicy = "after",
    eos_token: str | None = None,
    validation_fraction: float = 0.01,
    seed: int = 0,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    text_field: str = "text",
    shard_tokens: int = DEFAULT_SHARD_TOKENS,
    seq_length_hint: int | None = None,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    max_fault_fraction: float = 0.01,
    force: bool = False,
    on_progress: Progress = lambda stage, done, total: None,
) -> Prepared:
    """Writes the datasets `output` and `output`-validation; both appear whole or not at all.

    Args:
        inputs: files and folders; .jsonl files hold one document a row under `text_field`.
        tokenizer: a tokenizer.json, or a folder with one. Exactly one of this and
            `train_vocab_size`, which trains a byte-level BPE on the training part.
        validation_fraction: share of the text, in bytes, held out as whole documents; 0 writes no
            validation set. Equal documents always fall on the same side.
        seed: draws which documents are held out.
        max_fault_fraction: share of the documents that may be unreadable, not text or too large;
            above it nothing is written.
        force: replace datasets of these names.

    Raises:
        InvalidRequest: settings that do not fit together, or nothing usable in the inputs.
        NotFound: an input or the tokenizer does not exist.
        Conflict: a dataset of that name exists, or what is there is no dataset.
        CorruptData: a file changed while it was read, or the tokenizer is broken.
    """
    started = time.monotonic()
    if (tokenizer is None) == (train_vocab_size is None):
        raise InvalidRequest("set exactly one of --tokenizer and --train-tokenizer", "tokenizer")
    if not 0 <= validation_fraction < 1:
        raise InvalidRequest("must be at least 0 and below 1", "validation_fraction")
    layout = _Layout(eos_policy, shard_tokens, seq_length_hint)
    targets = [output, output.with_name(output.name + VALIDATION_SUFFIX)]
    with published(targets, replace=force) as folders:
        documents, left_out = scan(
            find_files(inputs, list(include), list(exclude)),
            text_field=text_field,
            max_document_bytes=max_document_bytes,
            on_progress=lambda done, total: on_progress("reading", done, total),
        )
        _require_usable(documents, left_out, max_fault_fraction)
        parts = split(documents, validation_fraction, seed)
        if train_vocab_size is not None:
            texts = _read(parts[0], "tokenizer", on_progress)
            chosen = train_tokenizer(texts, train_vocab_size, eos_token)
        else:
            chosen = load_tokenizer(tokenizer or Path(), eos_token)
        if eos_policy != "none" and chosen.eos_token_id is None:
            raise InvalidRequest(
                "the tokenizer does not say which token ends a text; set --eos-token, or "
                "--eos-policy none",
                "eos_token",
            )
        written = [
            _write_part(folder, target, part, chosen, layout, on_progress)
            for folder, target, part in zip(folders, targets, parts, strict=True)
            if part
        ]
    return Prepared(
        training=written[0],
        validation=written[1] if len(written) > 1 else None,
        vocab_size=chosen.vocab_size,
        tokenizer_sha256=tokenizer_sha256(chosen.tokens),
        eos_token_id=None if eos_policy == "none" else chosen.eos_token_id,
        left_out=left_out,
        seconds=time.monotonic() - started,
    )


def split(
    documents: list[Document], validation_fraction: float, seed: int
) -> tuple[list[Document], list[Document]]:
    """Returns (training, validation), each in the order of `documents`.

    Documents are drawn by a hash of (seed, content) until `validation_fraction` of the bytes is
    reached, so neither names nor order matter, and equal documents stay together.

    Raises:
        InvalidRequest: one of the two would be empty.
    """
    if validation_fraction == 0:
        return documents, []
    sizes = Counter[str]()
    for document in documents:
        sizes[document.sha256] += document.text_bytes
    wanted = validation_fraction * sizes.total()
    held_out: set[str] = set()
    drawn = 0
    for digest in sorted(sizes, key=lambda digest: _draw(seed, digest)):
        if drawn >= wanted:
            break
        held_out.add(digest)
        drawn += sizes[digest]
    if len(held_out) == len(sizes):
        raise InvalidRequest(
            f"{len(sizes)} different documents cannot be split by document; give more, or set "
            "--validation-fraction 0 and let the run hold rows out (data.validation_fraction)",
            "validation_fraction",
        )
    return (
        [document for document in documents if document.sha256 not in held_out],
        [document for document in documents if document.sha256 in held_out],
    )


@dataclass(frozen=True)
class _Layout:
    eos_policy: EosPolicy
    shard_tokens: int
    seq_length_hint: int | None


def _require_usable(
    documents: list[Document], left_out: list[LeftOut], max_fault_fraction: float
) -> None:
    faults = [entry for entry in left_out if entry.is_fault]
    named = "; ".join(f"{entry.name}: {entry.reason}" for entry in faults[:MAX_NAMED_FAULTS])
    if len(faults) > MAX_NAMED_FAULTS:
        named += f"; and {len(faults) - MAX_NAMED_FAULTS} more"
    if not documents:
        raise InvalidRequest(f"no text in the inputs{': ' + named if named else ''}", "inputs")
    if len(faults) > max_fault_fraction * (len(faults) + len(documents)):
        raise InvalidRequest(
            f"{len(faults)} of {len(faults) + len(documents)} documents cannot be used, more than "
            f"--max-fault-fraction {max_fault_fraction:g} allows ({named}); leave them out with "
            "--include or --exclude, or raise it",
            "inputs",
        )


def _read(documents: list[Document], stage: str, on_progress: Progress) -> Iterator[str]:
    for number, document in enumerate(documents):
        on_progress(stage, number, len(documents))
        yield document.read()
    on_progress(stage, len(documents), len(documents))


def _write_part(
    folder: Path,
    target: Path,
    documents: list[Document],
    tokenizer: DatasetTokenizer,
    layout: _Layout,
    on_progress: Progress,
) -> Part:
    """Writes shards, tokenizer and manifest of one dataset into `folder`."""
    eos = np.array([tokenizer.eos_token_id or 0], dtype=np.uint32)
    texts = _read(documents, "writing", on_progress)
    with ShardWriter(folder, layout.shard_tokens, tokenizer.vocab_size) as writer:
        for number, ids in enumerate(tokenizer.encode(texts)):
            if layout.eos_policy == "between" and number > 0:
                writer.append(eos)
            writer.append(ids)
            if layout.eos_policy == "after":
                writer.append(eos)
    if writer.total_tokens == 0:
        raise InvalidRequest(f"the tokenizer makes no token of the text of {target.name}", "inputs")
    manifest = ShardManifest.model_validate(
        {
            "schema": "pretokenize-bin-v1",
            "tokenizer_sha256": tokenizer_sha256(tokenizer.tokens),
            "corpus_sha256": writer.corpus_sha256(),
            "shard_count": writer.shard_count,
            "total_tokens": writer.total_tokens,
            "vocab_size": tokenizer.vocab_size,
            "eos_policy": layout.eos_policy,
            "eos_token_id": None if layout.eos_policy == "none" else tokenizer.eos_token_id,
            "seq_length_hint": layout.seq_length_hint,
            "producer_version": f"lectern {version('lectern')}",
            "producer_sha256": _producer_sha256(documents, layout),
        }
    )
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(by_alias=True, indent=2) + "\n")
    (folder / TOKENIZER_NAME).write_bytes(tokenizer.tokenizer_json)
    if tokenizer.config_json is not None:
        (folder / CONFIG_NAME).write_bytes(tokenizer.config_json)
    size = sum(document.text_bytes for document in documents)
    return Part(target, len(documents), size, writer.total_tokens, writer.shard_count)


def _producer_sha256(documents: list[Document], layout: _Layout) -> str:
    """Returns the hash over the settings, and the content of each document in order."""
    digest = hashlib.sha256(json.dumps(asdict(layout), sort_keys=True).encode())
    for document in documents:
        digest.update(bytes.fromhex(document.sha256))
    return digest.hexdigest()


def _draw(seed: int, digest: str) -> str:
    return hashlib.sha256(f"{seed}:{digest}".encode()).hexdigest()
