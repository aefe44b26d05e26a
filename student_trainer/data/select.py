"""Selects the training and validation rows that a run spec asks for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lectern_common.checks.compatibility import require_data_fits
from lectern_common.checks.documents import documents_held_out, require_chats, with_documents
from lectern_common.checks.needs.rollouts import prompts_folder
from lectern_common.checks.rules import (
    left_out_words,
    require_its_tokenizer,
    require_one_tokenizer,
    require_usable,
    rows_held_out,
    why_no_dataset,
    why_no_prompt_set,
)
from lectern_common.errors import InvalidSpec, NotFound
from lectern_common.logs import get_logger
from lectern_common.roots import Roots, resolve_under
from lectern_common.spec.data import of_its_source
from lectern_common.spec.run_spec import RunSpec
from lectern_common.tokens.chat_rows import LONG_CHATS
from lectern_common.tokens.shards import MANIFEST_NAME, ShardManifest, read_manifest
from lectern_common.tokens.tokenizer_map import TokenizerMap
from student_trainer.data.chat_dataset import OpenedChats, open_chats
from student_trainer.data.chats import ChatRows
from student_trainer.data.dataset import TokenRows, in_both, open_dataset
from student_trainer.data.mixed import JoinedRows
from student_trainer.data.rows import Rows, SyntheticRows, held_out, spread

_log = get_logger()


@dataclass(frozen=True)
class Data:
    """Training and validation rows.

    Attributes:
        training: the rows to train on.
        validation: rows that are not in the training set, at most evaluation.max_sequences.
        folder: of the training data; None for synthetic data.
        manifest: of the training data; None for synthetic data.
        sha256s: the hashes of everything that was read.
        validation_duplicates: rows, or chats, left out of the validation set because the training
            set has them too, token for token.
        packs_chats: whether chats of either set lie whole in their rows.
        described: how the chats of the training data lie in its rows, for the run's events.
        sources: the data of each of several sources, in order; the rest is then of all of them
            together, `folder` and `manifest` of the first. Empty for one dataset.
    """

    training: Rows
    validation: Rows
    folder: Path | None
    manifest: ShardManifest | None
    sha256s: list[str]
    validation_duplicates: int = 0
    packs_chats: bool = False
    described: dict[str, Any] = field(default_factory=dict)
    sources: "tuple[Data, ...]" = ()


def require_datasets(spec: RunSpec, roots: Roots) -> None:
    """Raises NotFound, naming the dataset and what to do, if one of an accepted run is gone.

    So it is with its prompt set.
    """
    data, prompts = spec.data, prompts_folder(spec, roots)
    if prompts is not None and not (prompts / MANIFEST_NAME).exists():
        why = why_no_prompt_set(roots.data, str(spec.rollout and spec.rollout.prompts), prompts)
        raise NotFound(
            f"rollout.prompts: {why}. It was there when the run was accepted: put it back, or make "
            "it again with `lectern data prepare --prompts`, then resume the run"
        )
    named = [("path", data.path), ("validation_path", data.validation_path)]
    named += [(f"sources.{index}.path", one.path) for index, one in enumerate(data.sources or ())]
    for name, path in named:
        if path is None:
            continue
        folder = resolve_under(roots.data, path, f"data.{name}")
        if not (folder / MANIFEST_NAME).exists():
            raise NotFound(
                f"data.{name}: {why_no_dataset(roots.data, path, folder)}. It was there when the "
                "run was accepted: put it back, or make it again with `lectern data prepare`, then "
                "resume the run"
            )


class Opened(Protocol):
    """A checked dataset whose units, rows or chats, are held out and compared."""

    @property
    def manifest(self) -> ShardManifest: ...

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """One per unit."""
        ...

    def units(self, indices: npt.NDArray[np.int64]) -> TokenRows: ...

    def rows_of(self, indices: npt.NDArray[np.int64]) -> Rows:
        """Returns the rows that these units are, or are packed into."""
        ...


def open_data(
    spec: RunSpec,
    roots: Roots,
    vocab_size: int,
    tokens: TokenizerMap | None,
    *,
    packs_chats: bool = True,
) -> Data:
    """Returns the rows of data.* and evaluation.max_sequences, all checked.

    Args:
        spec: the run's.
        roots: what its paths are relative to.
        vocab_size: the student's.
        tokens: the student's tokenizer; None if it came without one.
        packs_chats: False cuts chats at row borders as text is: only for a run that began so.

    Raises:
        InvalidSpec: there are too few rows, every validation row is also a training row, or a
            setting has no effect.
        Incompatible: the tokenizers of student, training data and validation data differ, or
            nothing of a dataset can be used.
        NotFound, CorruptData, Incompatible: as open_dataset says.
    """
    if spec.data.sources is not None:
        return _open_sources(spec, roots, vocab_size, tokens)
    if spec.data.path is None:
        synthetic = SyntheticRows(spec.seed, spec.data.seq_len, vocab_size)
        training, held = held_out(synthetic, spec.data.validation_fraction or 0.0)
        return Data(training, spread(held, spec.evaluation.max_sequences), None, None, [])
    folder = resolve_under(roots.data, spec.data.path, "data.path")
    spec = with_documents(spec, roots)
    opened = _open(spec, folder, vocab_size, packs_chats=packs_chats)
    other = None
    if spec.data.validation_path is not None:
        other = resolve_under(roots.data, spec.data.validation_path, "data.validation_path")
    note = require_data_fits(folder, opened.manifest, tokens, other)
    if note is not None:
        _log.warning("tokenizers_differ", message=note)
    hashes = opened.manifest.hashes
    if other is None:
        theirs, (chosen, held_indices) = opened, _last_held_out(spec, opened)
    else:
        theirs = _open(spec, other, vocab_size, packs_chats=packs_chats)
        require_one_tokenizer(
            str(spec.data.path),
            opened.manifest.tokenizer_sha256,
            str(spec.data.validation_path),
            theirs.manifest.tokenizer_sha256,
        )
        chosen, held_indices = np.arange(len(opened.hashes)), np.arange(len(theirs.hashes))
        hashes += theirs.manifest.hashes
    if packs_chats:
        require_chats(spec, [opened.manifest, theirs.manifest])
    is_known = in_both(
        theirs.units(held_indices),
        theirs.hashes[held_indices],
        opened.units(chosen),
        opened.hashes[chosen],
    )
    _require_unseen(is_known, theirs, spec)
    rows = opened.rows_of(chosen)
    return Data(
        training=rows,
        validation=spread(theirs.rows_of(held_indices[~is_known]), spec.evaluation.max_sequences),
        folder=folder,
        manifest=opened.manifest,
        sha256s=hashes,
        validation_duplicates=int(is_known.sum()),
        packs_chats=any(isinstance(one, OpenedChats) for one in (opened, theirs)),
        described=_described(spec, opened, rows),
    )


@dataclass(frozen=True)
class _Source:
    """One of several sources: its spec, folder and rows, those to train on and those held out."""

    spec: RunSpec
    folder: Path
    opened: Opened
    chosen: npt.NDArray[np.int64]
    held: npt.NDArray[np.int64]


def _open_sources(
    spec: RunSpec, roots: Roots, vocab_size: int, tokens: TokenizerMap | None
) -> Data:
    """Returns the rows of data.sources, all checked; see open_data."""
    sources = []
    for index, one in enumerate(spec.by_source()):
        with of_its_source(spec, index):
            sources.append(_open_source(one, roots, vocab_size, tokens))
            require_its_tokenizer(sources[0].opened.manifest, sources[-1].opened.manifest)
    if spec.data.long_chats is not None:
        require_chats(spec, [source.opened.manifest for source in sources])
    parts = []
    for index, source in enumerate(sources):
        with of_its_source(spec, index):
            parts.append(_apart_from_all(source, sources))
    labels = [source.label for source in spec.data.sources or ()]
    return Data(
        training=JoinedRows([part.training for part in parts]),
        validation=JoinedRows([part.validation for part in parts]),
        folder=parts[0].folder,
        manifest=parts[0].manifest,
        sha256s=[sha256 for part in parts for sha256 in part.sha256s],
        validation_duplicates=sum(part.validation_duplicates for part in parts),
        packs_chats=any(part.packs_chats for part in parts),
        described={
            "sources": {
                label: {"training_rows": len(part.training), **part.described}
                for label, part in zip(labels, parts, strict=True)
            }
        },
        sources=tuple(parts),
    )


def _open_source(
    spec: RunSpec, roots: Roots, vocab_size: int, tokens: TokenizerMap | None
) -> _Source:
    folder = resolve_under(roots.data, str(spec.data.path), "data.path")
    spec = with_documents(spec, roots)
    opened = _open(spec, folder, vocab_size, packs_chats=True)
    note = require_data_fits(folder, opened.manifest, tokens)
    if note is not None:
        _log.warning("tokenizers_differ", message=note)
    return _Source(spec, folder, opened, *_last_held_out(spec, opened))


def _apart_from_all(source: _Source, sources: Sequence[_Source]) -> Data:
    """Returns the rows of a source; it holds out none that any source is trained on."""
    held, opened = source.held, source.opened
    is_known = np.zeros(len(held), bool)
    for other in sources:
        is_known |= in_both(
            opened.units(held),
            opened.hashes[held],
            other.opened.units(other.chosen),
            other.opened.hashes[other.chosen],
        )
    _require_unseen(is_known, opened, source.spec)
    rows = opened.rows_of(source.chosen)
    most = source.spec.evaluation.max_sequences
    return Data(
        training=rows,
        validation=spread(opened.rows_of(held[~is_known]), most),
        folder=source.folder,
        manifest=opened.manifest,
        sha256s=opened.manifest.hashes,
        validation_duplicates=int(is_known.sum()),
        packs_chats=isinstance(opened, OpenedChats),
        described=_described(source.spec, opened, rows),
    )


def _last_held_out(spec: RunSpec, opened: Opened) -> list[npt.NDArray[np.int64]]:
    """Returns which rows or chats of a dataset are trained on, and which are held out."""
    fraction, indices = spec.data.validation_fraction or 0.0, np.arange(len(opened.hashes))
    if isinstance(opened, OpenedChats):
        count = documents_held_out(opened.chat_of, fraction)
    else:
        count = rows_held_out(len(indices), fraction)
    return np.split(indices, [-count])


def _open(spec: RunSpec, folder: Path, vocab_size: int, *, packs_chats: bool) -> Opened:
    """Returns a dataset, checked. Raises Incompatible if nothing of it can be used."""
    data = spec.data
    apart = data.attention_across_documents is False
    if packs_chats and read_manifest(folder).is_chats:
        chats = open_chats(
            folder,
            data.seq_len,
            vocab_size,
            data.max_bad_rows_fraction,
            attention_across_documents=not apart,
            long_chats=data.long_chats or LONG_CHATS,
        )
        left_out = left_out_words(len(chats.bad_rows), chats.dropped, chats.unlabelled)
        require_usable(folder, "chat", len(chats.chats), left_out)
        return chats
    opened = open_dataset(
        folder,
        data.seq_len,
        vocab_size,
        data.max_bad_rows_fraction,
        attention_across_documents=not apart,
    )
    left_out = left_out_words(len(opened.bad_rows), 0, opened.unlabelled)
    require_usable(folder, "row", len(opened.rows), left_out)
    return opened


def _require_unseen(is_known: npt.NDArray[np.bool_], held: Opened, spec: RunSpec) -> None:
    """Logs how many held-out rows, or chats, are left out because they are trained on.

    Raises:
        InvalidSpec: all of them are.
    """
    count, total = int(is_known.sum()), len(is_known)
    if not count:
        return
    units = _units_of(held)
    if count == total:
        field = "validation_path" if spec.data.validation_path else "validation_fraction"
        why = (
            f"all {total} held-out {units} ({getattr(spec.data, field)}) are also training "
            f"{units}, token for token, so validation would measure nothing; use other text for "
            "validation"
        )
        raise InvalidSpec([(f"data.{field}", why)])
    _log.warning(
        f"validation_{units}_left_out", **{units: count}, of=total, because=f"also training {units}"
    )


def _units_of(opened: Opened) -> str:
    return "chats" if isinstance(opened, OpenedChats) else "rows"


def _described(spec: RunSpec, opened: Opened, training: Rows) -> dict[str, Any]:
    """Returns what became of documents and chats, for the run's events."""
    found: dict[str, Any] = {
        "attention_across_documents": spec.data.attention_across_documents is not False
    }
    if isinstance(opened, OpenedChats) and isinstance(training, ChatRows):
        found |= {
            "training_chats": len(training.chats),
            "chats_cut": opened.cut,
            "chats_dropped": opened.dropped,
            "chats_without_labels": opened.unlabelled,
            "chats_with_unknown_ids": len(opened.bad_rows),
            "padding": round(training.padding, 4),
        }
    return found
