"""Selects the training and validation rows that a run spec asks for."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import structlog

from lectern_common.checks.compatibility import require_data_fits
from lectern_common.checks.rules import require_one_tokenizer
from lectern_common.errors import CorruptData, InvalidSpec
from lectern_common.roots import Roots, resolve_under
from lectern_common.spec.run_spec import RunSpec
from lectern_common.tokens.shards import ShardManifest
from lectern_common.tokens.tokenizer_map import TokenizerMap
from student_trainer.data.dataset import OpenedDataset, in_both, open_dataset
from student_trainer.data.rows import ChosenRows, Rows, SyntheticRows, held_out, spread

_log = structlog.get_logger()


@dataclass(frozen=True)
class Data:
    """Training and validation rows.

    Attributes:
        training: the rows to train on.
        validation: rows that are not in the training set, at most evaluation.max_sequences.
        folder: of the training data; None for synthetic data.
        manifest: of the training data; None for synthetic data.
        sha256s: the hashes of everything that was read.
        validation_duplicates: rows left out of the validation set because the training set has
            them too, token for token.
    """

    training: Rows
    validation: ChosenRows
    folder: Path | None
    manifest: ShardManifest | None
    sha256s: list[str]
    validation_duplicates: int = 0


def open_data(spec: RunSpec, roots: Roots, vocab_size: int, tokens: TokenizerMap | None) -> Data:
    """Returns the rows of data.* and evaluation.max_sequences, all checked.

    Args:
        spec: the run's.
        roots: what its paths are relative to.
        vocab_size: the student's.
        tokens: the student's tokenizer; None if it came without one.

    Raises:
        InvalidSpec: there are too few rows, or every validation row is also a training row.
        Incompatible: the tokenizers of student, training data and validation data differ.
        NotFound, CorruptData: as open_dataset says.
    """
    most = spec.evaluation.max_sequences
    if spec.data.path is None:
        synthetic = SyntheticRows(spec.seed, spec.data.seq_len, vocab_size)
        training, held = held_out(synthetic, spec.data.validation_fraction or 0.0)
        return Data(training, spread(held, most), None, None, [])
    folder = resolve_under(roots.data, spec.data.path, "data.path")
    opened = _open(spec, folder, vocab_size)
    other = None
    if spec.data.validation_path is not None:
        other = resolve_under(roots.data, spec.data.validation_path, "data.validation_path")
    note = require_data_fits(folder, opened.manifest, tokens, other)
    if note is not None:
        _log.warning("tokenizers_differ", message=note)
    hashes = opened.manifest.hashes
    if other is None:
        training, held = held_out(opened.rows, spec.data.validation_fraction or 0.0)
        row_hashes, held_hashes = opened.hashes[training.indices], opened.hashes[held.indices]
    else:
        theirs = _open(spec, other, vocab_size)
        require_one_tokenizer(
            spec.data.path,
            opened.manifest.tokenizer_sha256,
            str(spec.data.validation_path),
            theirs.manifest.tokenizer_sha256,
        )
        training, row_hashes = opened.rows, opened.hashes
        held, held_hashes = theirs.rows, theirs.hashes
        hashes += theirs.manifest.hashes
    duplicates = in_both(held, held_hashes, training, row_hashes)
    unseen = _without(duplicates, held, spec)
    return Data(
        training, spread(unseen, most), folder, opened.manifest, hashes, int(duplicates.sum())
    )


def _open(spec: RunSpec, folder: Path, vocab_size: int) -> OpenedDataset:
    data = spec.data
    opened = open_dataset(
        folder,
        data.seq_len,
        vocab_size,
        data.max_bad_rows_fraction,
        attention_across_documents=data.attention_across_documents,
    )
    if not len(opened.rows):
        raise CorruptData(
            f"{folder} has no usable row: {len(opened.bad_rows)} rows have ids that the student "
            f"lacks, and {opened.unlabelled} have no label that counts"
        )
    return opened


def _without(duplicates: npt.NDArray[np.bool_], held: ChosenRows, spec: RunSpec) -> ChosenRows:
    """Returns the held-out rows that are not training rows; logs how many were left out.

    Raises:
        InvalidSpec: all of them are training rows.
    """
    count, total = int(duplicates.sum()), len(held)
    if not count:
        return held
    if count == total:
        field = "validation_path" if spec.data.validation_path else "validation_fraction"
        why = (
            f"all {total} held-out rows ({getattr(spec.data, field)}) are also training rows, "
            "token for token, so validation would measure nothing; use other text for validation"
        )
        raise InvalidSpec([(f"data.{field}", why)])
    _log.warning("validation_rows_left_out", rows=count, of=total, because="also training rows")
    return ChosenRows(held.rows, held.indices[~duplicates])
