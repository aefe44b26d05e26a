"""The rows that a run spec asks for."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
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
        training: the rows that are learnt.
        validation: rows that are in no other place, at most evaluation.max_sequences.
        folder: of the training data; None for synthetic data.
        manifest: of the same.
        sha256s: the hashes of what was read.
        validation_duplicates: rows left out of the validation set, because the training set has
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
        tokens: the student's tokenizer; None where it came without one.

    Raises:
        InvalidSpec: there are too few rows, or all of the validation set are learnt too.
        Incompatible: tokenizers differ, of student, training or validation data.
        NotFound, CorruptData: as open_dataset says.
    """
    most = spec.evaluation.max_sequences
    if spec.data.path is None:
        synthetic = SyntheticRows(spec.seed, spec.data.seq_len, vocab_size)
        training, held = held_out(synthetic, spec.data.validation_fraction or 0.0)
        return Data(training, spread(held, most), None, None, [])
    folder = resolve_under(roots.data, spec.data.path, "data.path")
    opened = _open(spec, folder, vocab_size)
    require_data_fits(folder, opened.manifest, tokens)
    hashes = opened.manifest.hashes
    if spec.data.validation_path is None:
        training, held = held_out(opened.rows, spec.data.validation_fraction or 0.0)
        row_hashes, held_hashes = opened.hashes[training.indices], opened.hashes[held.indices]
    else:
        other = resolve_under(roots.data, spec.data.validation_path, "data.validation_path")
        theirs = _open(spec, other, vocab_size)
        require_one_tokenizer(
            spec.data.path,
            opened.manifest.tokenizer_sha256,
            spec.data.validation_path,
            theirs.manifest.tokenizer_sha256,
        )
        training, row_hashes = opened.rows, opened.hashes
        held, held_hashes = theirs.rows, theirs.hashes
        hashes += theirs.manifest.hashes
    learnt_too = in_both(held, held_hashes, training, row_hashes)
    own = _only_held_out(spec, held, learnt_too)
    return Data(training, spread(own, most), folder, opened.manifest, hashes, int(learnt_too.sum()))


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
            f"no row of {folder} can be used: {len(opened.bad_rows)} have ids that the student "
            f"lacks, {opened.unlabelled} no label that counts"
        )
    return opened


def _only_held_out(
    spec: RunSpec, held: ChosenRows, learnt_too: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> ChosenRows:
    """Returns the validation rows that are not learnt, having said how many are."""
    count, total = int(learnt_too.sum()), len(held)
    if not count:
        return held
    if count == total:
        field = "validation_path" if spec.data.validation_path else "validation_fraction"
        why = (
            f"all {total} rows held out ({getattr(spec.data, field)}) are also among the training "
            "rows, token for token: nothing would be measured. Take other text for validation"
        )
        raise InvalidSpec([(f"data.{field}", why)])
    _log.warning("validation_rows_left_out", rows=count, of=total, because="learnt too")
    return ChosenRows(held.rows, held.indices[~learnt_too])
