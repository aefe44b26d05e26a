"""The rows that a run spec asks for."""

from dataclasses import dataclass
from pathlib import Path

from lectern_common.compatibility import require_data_fits
from lectern_common.errors import CorruptData, Incompatible
from lectern_common.roots import Roots, resolve_under
from lectern_common.run_spec import RunSpec
from lectern_common.shards import TOKENIZER_NAME, ShardManifest
from lectern_common.tokenizer_map import TokenizerMap, read_tokenizer_map, tokenizer_sha256
from student_trainer.datasets import ChosenRows, Rows, SyntheticRows, held_out, open_dataset, spread


@dataclass(frozen=True)
class Data:
    """Training and validation rows.

    `folder` and `manifest` are None for synthetic data, `sha256s` are the hashes of what was read.
    """

    training: Rows
    validation: ChosenRows
    folder: Path | None
    manifest: ShardManifest | None
    sha256s: list[str]


def open_data(spec: RunSpec, roots: Roots, vocab_size: int, tokens: TokenizerMap | None) -> Data:
    """Returns the rows of data.* and evaluation.max_sequences, all checked.

    Args:
        spec: the run's.
        roots: what its paths are relative to.
        vocab_size: the student's.
        tokens: the student's tokenizer; None where it came without one.

    Raises:
        InvalidSpec: there are too few rows.
        Incompatible: tokenizers differ, of student, training or validation data.
        NotFound, CorruptData: as open_dataset says.
    """
    seq_len, fraction = spec.data.seq_len, spec.data.validation_fraction
    rows: Rows
    training: Rows
    if spec.data.path is None:
        folder, manifest = None, None
        rows = SyntheticRows(spec.seed, seq_len, vocab_size)
    else:
        folder = resolve_under(roots.data, spec.data.path, "data.path")
        rows, manifest = _shard_rows(spec, folder, vocab_size)
        if tokens is not None:
            require_data_fits(folder, manifest, tokens)
        elif (folder / TOKENIZER_NAME).exists():
            _require_own_tokenizer(folder, manifest)
    sha256s = [] if manifest is None else [manifest.corpus_sha256]
    if spec.data.validation_path is None:
        training, validation = held_out(rows, fraction or 0.0)
    else:
        other = resolve_under(roots.data, spec.data.validation_path, "data.validation_path")
        training = rows
        validation, theirs = _shard_rows(spec, other, vocab_size)
        if manifest is not None and theirs.tokenizer_sha256 != manifest.tokenizer_sha256:
            raise Incompatible(
                f"data.validation_path {spec.data.validation_path} was prepared with another "
                f"tokenizer than data.path {spec.data.path}; prepare both with the same one"
            )
        sha256s.append(theirs.corpus_sha256)
    evaluated = spread(validation, spec.evaluation.max_sequences)
    return Data(training, evaluated, folder, manifest, sha256s)


def _shard_rows(spec: RunSpec, folder: Path, vocab_size: int) -> tuple[ChosenRows, ShardManifest]:
    opened = open_dataset(folder, spec.data.seq_len, vocab_size, spec.data.max_bad_rows_fraction)
    if not len(opened.rows):
        raise CorruptData(f"every row of {folder} has ids that the student lacks")
    return opened.rows, opened.manifest


def _require_own_tokenizer(folder: Path, manifest: ShardManifest) -> None:
    if tokenizer_sha256(read_tokenizer_map(folder / TOKENIZER_NAME)) != manifest.tokenizer_sha256:
        raise CorruptData(
            f"{folder / TOKENIZER_NAME} is not the tokenizer that the shards beside it were "
            "written with; prepare the data again"
        )
