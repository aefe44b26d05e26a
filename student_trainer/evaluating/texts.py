"""Held-out text as batches: windows over documents, or the validation rows of a run.

A document of n tokens t_0 .. t_n-1 is scored in windows, each token once, with up to W tokens
before it, as `loglikelihood_rolling` of lm-evaluation-harness does: the first window is the prefix
token and t_0 .. t_W-2, and predicts t_0 .. t_W-1; each later one predicts the next W tokens, the
last one those that are left, with W tokens of context as well. Tokens that a dataset puts around
its documents are left out, and bytes are those of the text, so bits per byte of models with
different tokenizers compare.

Legend: B sequences, S tokens.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from lectern_common.checks.documents import with_documents
from lectern_common.errors import CorruptData, Incompatible, InvalidRequest, InvalidSpec, NotFound
from lectern_common.roots import Roots, resolve_under
from lectern_common.spec.run_spec import RunSpec
from lectern_common.spec.suites import TextOptions
from lectern_common.tokens.shards import (
    MANIFEST_NAME,
    TOKENIZER_NAME,
    open_shards,
    read_document_starts,
    read_manifest,
)
from lectern_common.tokens.tokenizer_map import TokenizerMap, tokenizer_sha256
from lectern_common.words import inert_name
from student_trainer.batch import Batch
from student_trainer.data.rows import in_order
from student_trainer.data.select import open_data
from student_trainer.data.stream import TokenStream
from student_trainer.evaluating.subject import Subject
from student_trainer.evaluating.words import TextTokenizer
from student_trainer.targets import IGNORE_INDEX

# Without a limit of its own, a model that takes very long sequences sees so much at a time.
_MOST_POSITIONS = 4096


@dataclass(frozen=True)
class HeldOut:
    """Text to measure on.

    Attributes:
        batches: of about equal cost, in a fixed order.
        bytes_of: bytes of the text that each batch predicts; None means unknown.
        facts: what the result says about it.
    """

    batches: Sequence[Batch]
    bytes_of: Sequence[int] | None
    facts: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class _Document:
    ids: list[int]
    num_bytes: int


def held_out_text(
    options: TextOptions, subject: Subject, roots: Roots, batch_sequences: int
) -> HeldOut:
    """Returns the text that a request names, in tokens of the subject.

    Raises:
        NotFound: there is no such file or dataset, or no tokenizer for it.
        InvalidRequest: the options do not suit the subject; there is no text.
        Incompatible: a dataset was made with another tokenizer than the subject's.
        CorruptData: a file cannot be read.
    """
    if options.data is None:
        if subject.spec is None:
            raise InvalidSpec(
                [("text.data", "is required: only a run has validation rows of its own")]
            )
        return _validation_rows(subject, subject.spec, roots, batch_sequences)
    path = resolve_under(roots.data, options.data, "text.data")
    if (path / MANIFEST_NAME).exists():
        documents, tokenizer = _of_dataset(path, subject, options)
        prefix = None if tokenizer is None else tokenizer.prefix_id()
    elif path.is_file():
        tokenizer = subject.tokenizer()
        documents, prefix = _of_file(path, tokenizer, options), tokenizer.prefix_id()
    else:
        raise NotFound(
            f"text.data: no dataset and no .jsonl or .txt file {inert_name(options.data)} under "
            f"{roots.data}"
        )
    window = _window(options, subject)
    cuts = [
        (inputs, labels, count)
        for document in documents
        for inputs, labels, count in _cut(document, prefix, window)
    ]
    if not cuts:
        raise InvalidRequest(f"{inert_name(options.data)} has no token to predict", "text.data")
    return _batched(cuts, documents, batch_sequences, {"window": window, "prefix_id": prefix})


def windows(
    ids: Sequence[int], prefix: int | None, window: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Yields (context, predicted): each token once, after as many before it as fit.

    Args:
        ids: of a document.
        prefix: stands before its first token; None means that is not predicted.
        window: W, at least 2.
    """
    whole = list(ids) if prefix is None else [prefix, *ids]
    first = 1
    while first < len(whole):
        stop = min(first + window, len(whole))
        begin = max(0, stop - 1 - window)
        yield whole[begin:first], whole[first:stop]
        first = stop


def _cut(
    document: _Document, prefix: int | None, window: int
) -> Iterator[tuple[list[int], list[int], int]]:
    """Yields (inputs, labels, bytes) of a document; the bytes stand at its first window."""
    left = document.num_bytes
    for context, predicted in windows(document.ids, prefix, window):
        inputs = [*context, *predicted[:-1]]
        labels = [IGNORE_INDEX] * (len(context) - 1) + predicted
        yield inputs, labels, left
        left = 0


def _batched(
    cuts: list[tuple[list[int], list[int], int]],
    documents: Sequence[_Document],
    size: int,
    facts: dict[str, object],
) -> HeldOut:
    """Returns batches of windows of like length; padding is at the end, and predicts nothing."""
    order = sorted(range(len(cuts)), key=lambda index: -len(cuts[index][0]))
    batches, num_bytes = [], []
    for first in range(0, len(order), size):
        chosen = [cuts[index] for index in order[first : first + size]]
        longest = len(chosen[0][0])
        inputs_BS = np.zeros((len(chosen), longest), np.int64)
        labels_BS = np.full((len(chosen), longest), IGNORE_INDEX, np.int64)
        for row, (inputs, labels, _) in enumerate(chosen):
            inputs_BS[row, : len(inputs)] = inputs
            labels_BS[row, : len(labels)] = labels
        lengths_B = np.array([len(inputs) for inputs, _, _ in chosen], np.int64)
        batches.append(Batch(inputs_BS, labels_BS, None, lengths_B))
        num_bytes.append(sum(count for _, _, count in chosen))
    return HeldOut(batches, num_bytes, {**facts, "documents": len(documents)})


def _window(options: TextOptions, subject: Subject) -> int:
    most = subject.max_positions
    if options.window is None:
        return min(most or _MOST_POSITIONS, _MOST_POSITIONS)
    if most is not None and options.window > most:
        why = f"is {options.window}, but {subject.words} takes at most {most} tokens"
        raise InvalidSpec([("text.window", why)])
    return options.window


def _of_file(path: Path, tokenizer: TextTokenizer, options: TextOptions) -> list[_Document]:
    documents = []
    for text in _texts(path):
        documents.append(_Document(tokenizer.ids(text), len(text.encode(errors="replace"))))
        if options.max_documents is not None and len(documents) >= options.max_documents:
            break
    return documents


def _texts(path: Path) -> Iterator[str]:
    """Yields the documents of a text file, which is one, or of a file of JSON lines."""
    if path.suffix != ".jsonl":
        try:
            yield path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise CorruptData(f"{path} is not UTF-8 text: {error}", "text.data") from None
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError, RecursionError):
                text = None
            if not isinstance(text, str):
                raise CorruptData(
                    f"line {number} of {path} is not a JSON object with a `text`", "text.data"
                )
            yield text


def _of_dataset(
    folder: Path, subject: Subject, options: TextOptions
) -> tuple[list[_Document], TextTokenizer | None]:
    """Returns the documents of a dataset without the tokens around them, and its tokenizer."""
    manifest = read_manifest(folder)
    if manifest.is_chats:
        raise InvalidRequest(
            f"{inert_name(str(options.data))} is a dataset of chats, of which only answers are "
            "predicted: leave text.data out, and evaluate a run on its validation rows",
            "text.data",
        )
    _require_tokens(manifest.tokenizer_sha256, subject.tokens(), subject.words, "text.data")
    tokenizer = TextTokenizer(folder) if (folder / TOKENIZER_NAME).exists() else None
    tokenizer = subject.tokenizer() if subject.folder is not None else tokenizer
    if tokenizer is None:
        raise NotFound(f"neither {folder} nor {subject.words} have a {TOKENIZER_NAME}")
    starts = read_document_starts(folder, manifest)
    bounds = [0, manifest.total_tokens]
    if starts is not None:
        bounds = [*starts.tolist(), manifest.total_tokens]
    around = {manifest.bos_token_id, manifest.eos_token_id} - {None}
    if options.max_documents is not None:
        bounds = bounds[: options.max_documents + 1]
    stream = TokenStream(open_shards(folder, manifest))
    documents = []
    for first, stop in pairwise(bounds):
        ids = stream.read(first, stop - first).tolist()
        while ids and ids[0] in around:
            ids.pop(0)
        while ids and ids[-1] in around:
            ids.pop()
        documents.append(_Document(ids, len(tokenizer.text(ids).encode())))
    return documents, tokenizer


def _validation_rows(
    subject: Subject, spec: RunSpec, roots: Roots, batch_sequences: int
) -> HeldOut:
    """Returns the rows on which the run measured loss/val, in the same order."""
    spec = with_documents(spec, roots)
    packs_chats = subject.run is None or subject.run.packs_chats
    data = open_data(spec, roots, subject.vocab_size, subject.tokens(), packs_chats=packs_chats)
    batches = list(in_order(data.validation, batch_sequences))
    num_bytes = None
    if data.folder is not None and (data.folder / TOKENIZER_NAME).exists():
        tokenizer = TextTokenizer(data.folder)
        num_bytes = [
            sum(len(tokenizer.text(row[row >= 0].tolist()).encode()) for row in batch.labels_BS)
            for batch in batches
        ]
    facts = {"window": spec.data.seq_len, "rows": len(data.validation)}
    return HeldOut(batches, num_bytes, {"data": "validation rows", **facts})


def _require_tokens(sha256: str, tokens: TokenizerMap | None, whose: str, field: str) -> None:
    if tokens is None:
        raise NotFound(f"{whose} has no tokenizer here, so its tokens cannot be compared")
    if tokenizer_sha256(tokens) != sha256:
        raise Incompatible(
            f"{field}: the dataset was made with another tokenizer than that of {whose}; give a "
            ".jsonl or .txt file, which is tokenized for each model"
        )
