"""Compares what tokenizers make of texts: fixed ones that they differ in, and the data's own."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lectern_common.tokens.shards import open_shards, read_document_starts, read_manifest
from student_trainer.data.stream import TokenStream

# Documents of the data that are compared, their tokens, and the longest time for it.
_DOCUMENTS = 64
_DOCUMENT_TOKENS = 512
_SECONDS = 5.0
# What tokenizers differ in.
_PROBES = (
    " 1234 56789 3.14 1,000,000 0x1F 2026-11-29",
    "x  =  12\n\n\t\tif  a:\r\n        return  a[1:]   \n  \n",
    "'S DON'T I'll we've",
    "def f(self, *args): # a note\n    return {'a': [1, 2], \"b\": __name__}\n",
    "caf\xe9 na\xefve stra\xdfe \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4 \u0645\u0631\u062d\u0628",
    "e\u0301 A\u030a \u0939\u093f\u0928\u094d\u0926\u0940 \u1100\u1161 \ufb01",
    "\U0001f642\U0001f469\u200d\U0001f4bb \u2026 \xa0 \u3000 \u2014 \u2581 a\u2581b",
    "   leading, trailing   ",
)


def first_difference(tokenizer: Any, reference: Tokenizer, texts: Sequence[str]) -> str | None:
    """Returns the first part of a text with other ids than `reference` gives; None if all agree.

    Stops after _SECONDS, so the fixed texts come first.

    Args:
        tokenizer: one of transformers or of the tokenizers library.
        reference: the tokenizer of training.
        texts: compared after the fixed ones.
    """

    def differs(text: str) -> bool:
        return _ids(tokenizer, text) != _ids(reference, text)

    started = time.monotonic()
    for text in (*_PROBES, *texts):
        if time.monotonic() - started > _SECONDS:
            break
        if differs(text):
            return _shortest_part(text, differs)
    return None


def _shortest_part(text: str, differs: Callable[[str], bool]) -> str:
    """Returns a part of a text that still differs, cut in halves while one half does."""
    while len(text) > 1:
        half = len(text) // 2
        smaller = [part for part in (text[:half], text[half:]) if differs(part)]
        if not smaller:
            break
        text = smaller[0]
    return text[:80]


def _ids(tokenizer: Any, text: str) -> list[int]:
    """Returns the ids of a text from a tokenizer of transformers or of the tokenizers library."""
    if isinstance(tokenizer, Tokenizer):
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def texts_of(dataset: Path, tokenizer: Tokenizer) -> Iterator[str]:
    """Yields the beginnings of documents from all over a dataset, decoded with its tokenizer."""
    manifest = read_manifest(dataset)
    stream = TokenStream(open_shards(dataset, manifest))
    starts = read_document_starts(dataset, manifest)
    if starts is None:
        starts = np.arange(0, len(stream), _DOCUMENT_TOKENS)
    ends = np.append(starts[1:], len(stream))
    skipped = {manifest.eos_token_id, manifest.bos_token_id}
    for index in np.linspace(0, len(starts) - 1, min(_DOCUMENTS, len(starts)), dtype=np.int64):
        size = min(int(ends[index] - starts[index]), _DOCUMENT_TOKENS)
        ids = stream.read(int(starts[index]), size).tolist()
        kept = [one for one in ids if one not in skipped]
        yield tokenizer.decode(kept, skip_special_tokens=False)
