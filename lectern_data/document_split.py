"""Chooses the documents that are held out for validation."""

import hashlib
from collections import Counter

from lectern_common.errors import InvalidRequest
from lectern_common.words import counted
from lectern_data.read.documents import Document


def split(
    documents: list[Document], validation_fraction: float, seed: int
) -> tuple[list[Document], list[Document]]:
    """Returns (training, validation), each in the order of `documents`.

    Documents are drawn in the order of a hash of (seed, content) until `validation_fraction` of the
    bytes is reached, so names and order do not matter, and equal documents stay together. A
    document that would take the validation part beyond the wanted size by more than that size, or
    than an average document if that is larger, is passed over: one huge document stays in training.
    So is one that would leave nothing to train on.

    Raises:
        InvalidRequest: there are fewer than two distinct documents.
    """
    if validation_fraction == 0:
        return documents, []
    sizes = Counter[str]()
    for document in documents:
        sizes[document.sha256] += document.text_bytes
    if len(sizes) < 2:
        raise InvalidRequest(
            f"{counted(len(sizes), 'distinct document')} cannot be split; add more, or set "
            "--validation-fraction 0 and let the run hold out rows (data.validation_fraction)",
            "validation_fraction",
        )
    wanted = validation_fraction * sizes.total()
    most = wanted + max(wanted, sizes.total() / len(sizes))
    held_out: set[str] = set()
    drawn = 0
    for digest in sorted(sizes, key=lambda digest: _draw(seed, digest)):
        if drawn >= wanted:
            break
        if drawn + sizes[digest] > most or len(held_out) == len(sizes) - 1:
            continue
        held_out.add(digest)
        drawn += sizes[digest]
    return (
        [document for document in documents if document.sha256 not in held_out],
        [document for document in documents if document.sha256 in held_out],
    )


def unlike_the_wanted(
    parts: tuple[list[Document], list[Document]], validation_fraction: float
) -> str | None:
    """Returns a sentence if the validation part is less than half or more than twice the wanted."""
    training, validation = (sum(entry.text_bytes for entry in part) for part in parts)
    share = validation / max(1, training + validation)
    if validation_fraction / 2 <= share <= 2 * validation_fraction:
        return None
    return (
        f"the validation set has {share:.1%} of the text instead of {validation_fraction:.1%}, "
        "because documents are held out whole"
    )


def _draw(seed: int, digest: str) -> str:
    return hashlib.sha256(f"{seed}:{digest}".encode()).hexdigest()
