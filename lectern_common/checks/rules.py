"""Rules for data and student, each with one error message.

The checks before a run apply them to manifests and configs, the trainer to what it has loaded, so
both report a broken rule in the same words.
"""

from collections.abc import Sequence
from pathlib import Path

from lectern_common.errors import CorruptData, Incompatible, InvalidSpec
from lectern_common.roots import what_is_there
from lectern_common.teacher.record.manifest import is_record
from lectern_common.tokens.prompt_sets import is_prompt_set
from lectern_common.tokens.shards import MANIFEST_NAME, ShardManifest
from lectern_common.words import counted

CUT = "longer than a row and cut (data.long_chats)"
_NAMED_BAD_ROWS = 5


def why_no_dataset(root: Path, path: str, folder: Path) -> str:
    """Returns what is wrong with a dataset folder that has no manifest, and what there is instead.

    Args:
        root: the data root.
        path: the dataset, as the spec names it.
        folder: where that is.
    """
    if folder.is_dir():
        return f"{folder} has no {MANIFEST_NAME}, so it is not a dataset"
    there = what_is_there(root, path, MANIFEST_NAME, _is_dataset)
    return f"no dataset {path!r} under the data root {there}"


def why_no_prompt_set(root: Path, path: str, folder: Path) -> str:
    """Returns the same of a prompt set."""
    if folder.is_dir():
        return f"{folder} has no {MANIFEST_NAME}, so it is not a prompt set"
    there = what_is_there(root, path, MANIFEST_NAME, is_prompt_set)
    return f"no prompt set {path!r} under the data root {there}"


def _is_dataset(folder: Path) -> bool:
    return not is_record(folder) and not is_prompt_set(folder)


def require_row(folder: Path, num_tokens: int, seq_len: int) -> None:
    """Raises InvalidSpec unless `num_tokens` are enough for one row of seq_len + 1."""
    if num_tokens < seq_len + 1:
        why = f"{folder} has {num_tokens} tokens, but a row needs {seq_len} + 1"
        raise InvalidSpec([("data.seq_len", f"{why}; lower it, or prepare more data")])


def require_document_starts(folder: Path, *, are_known: bool, needs_them: bool) -> None:
    """Raises InvalidSpec if documents are to be kept apart in a dataset without their starts."""
    if needs_them and not are_known:
        why = (
            f"false needs the start of each document, which {folder} does not record; prepare it "
            "again with `lectern data prepare`, or set true"
        )
        raise InvalidSpec([("data.attention_across_documents", why)])


def require_own_tokenizer(tokenizer: Path, its_sha256: str, shards_sha256: str) -> None:
    """Raises CorruptData unless the shards beside a tokenizer were written with it.

    Args:
        tokenizer: the file, for the message.
        its_sha256: hash of its tokens.
        shards_sha256: the hash in the manifest, of the tokens that the shards were written with.
    """
    if its_sha256 != shards_sha256:
        raise CorruptData(
            f"{tokenizer} is not the tokenizer that the shards beside it were written with; "
            "prepare the data again"
        )


def require_few_unknown(
    folder: Path,
    of: str,
    bad: Sequence[int],
    total: int,
    vocab_size: int,
    max_bad_rows_fraction: float,
) -> None:
    """Raises Incompatible if too many rows or chats have ids that the student lacks.

    Args:
        folder: of the dataset.
        of: "row" or "chat".
        bad: their indices.
        total: rows or chats of the dataset.
        vocab_size: the student's.
        max_bad_rows_fraction: of the spec's data.
    """
    if not bad or len(bad) / total <= max_bad_rows_fraction:
        return
    raise Incompatible(
        f"{len(bad)} of {total} {of}s of {folder} ({len(bad) / total:.2%}) have ids outside the "
        f"student's vocabulary of {vocab_size}; the first are {of}s {named_rows(bad)}. "
        f"data.max_bad_rows_fraction allows {max_bad_rows_fraction}; prepare the data with the "
        "student's tokenizer, or choose a student that has these ids"
    )


def named_rows(bad: Sequence[int]) -> str:
    """Returns the first of these numbers, as messages name them."""
    return ", ".join(str(index) for index in bad[:_NAMED_BAD_ROWS])


def left_out_words(unknown: int, dropped: int, unlabelled: int) -> dict[str, int]:
    """Returns the counts of rows or chats that a run leaves out, by the reason in words."""
    return {
        "with ids that the student lacks": unknown,
        "longer than a row and dropped (data.long_chats)": dropped,
        "with nothing that is learnt": unlabelled,
    }


def require_usable(folder: Path, of: str, usable: int, left_out: dict[str, int]) -> None:
    """Raises Incompatible if a dataset has no row or chat that this run can use.

    Args:
        folder: of the dataset.
        of: "row" or "chat".
        usable: how many rows or chats can be used.
        left_out: how many cannot, by the reason in words.
    """
    if not usable:
        why = ", ".join(f"{count:,} {words}" for words, count in left_out.items() if count)
        raise Incompatible(
            f"{folder} has no usable {of}: {why}; prepare data that suits the student and "
            "data.seq_len"
        )


def require_one_tokenizer(
    path: str, tokenizer_sha256: str, validation_path: str, validation_sha256: str
) -> None:
    """Raises Incompatible unless training and validation data have the same tokenizer.

    Args:
        path: data.path; `tokenizer_sha256` is in its manifest.
        validation_path: data.validation_path; `validation_sha256` is in its manifest.
    """
    if tokenizer_sha256 != validation_sha256:
        raise Incompatible(
            f"data.validation_path {validation_path} was prepared with a different tokenizer than "
            f"data.path {path}; prepare both with the same one"
        )


def require_its_tokenizer(first: ShardManifest, other: ShardManifest) -> None:
    """Raises Incompatible unless a source has the tokenizer of the first, and ends texts alike."""
    if first.tokenizer_sha256 != other.tokenizer_sha256:
        raise Incompatible(
            "it was prepared with a different tokenizer than the first of data.sources; prepare "
            "all of them with the same one"
        )
    if first.eos_token_id != other.eos_token_id:
        raise Incompatible(
            f"its texts end with token {other.eos_token_id}, those of the first of data.sources "
            f"with {first.eos_token_id}; prepare all of them alike"
        )


def rows_held_out(num_rows: int, fraction: float, of: str = "row") -> int:
    """Returns how many rows are held out for validation: this fraction, but at least one.

    Args:
        num_rows: rows, or chats, which are held out before rows are made of them.
        fraction: data.validation_fraction.
        of: what is counted, for the message.

    Raises:
        InvalidSpec: no rows would be left to train on.
    """
    num_validation = max(1, round(num_rows * fraction))
    if num_validation >= num_rows:
        shorter = ", or data.seq_len" if of == "row" else ""
        why = (
            f"holding out {fraction} of {counted(num_rows, of)} leaves none to train on; lower "
            f"it{shorter}, or prepare more data"
        )
        raise InvalidSpec([("data.validation_fraction", why)])
    return num_validation


def require_step(num_rows: int, sequences_per_step: int) -> None:
    """Raises InvalidSpec unless the training data has enough rows for one step."""
    if num_rows < sequences_per_step:
        why = (
            f"a step needs {sequences_per_step} rows, but the training data has only {num_rows}; "
            "lower it, or data.seq_len, or prepare more data"
        )
        raise InvalidSpec([("batch.sequences_per_step", why)])


def require_positions(seq_len: int, max_positions: int | None) -> None:
    """Raises Incompatible if rows exceed the student's positions; None means no limit."""
    if max_positions is not None and seq_len > max_positions:
        raise Incompatible(
            f"data.seq_len {seq_len} exceeds the {max_positions} positions of the student; lower it"
        )


def require_layers_to_leave_out(num_layers: int) -> None:
    """Raises InvalidSpec if the student has too few layers to leave any out."""
    if num_layers < 2:
        why = (
            f"the student has {counted(num_layers, 'layer')}, so none can be left out; remove this "
            "setting, or choose another student.init"
        )
        raise InvalidSpec([("student.keep_every_nth_layer", why)])
