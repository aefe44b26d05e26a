"""Checks that teacher, student and data mean the same by every id that the data uses.

Models of one family often differ in ids that no data uses: heads padded to different widths, and
tokenizers of which one names a few more special tokens. Such a pair is accepted if the data was
searched and uses none of those ids; the teacher then has no say in them (see `Untaught`). All
other pairs are refused, naming the ids. Sizes prove nothing: maps are compared token by token.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lectern_common.errors import CorruptData, Incompatible, NotFound, TokenizerMismatch
from lectern_common.spec.run_spec import RunSpec
from lectern_common.tokens.shards import (
    TOKENIZER_NAME,
    ShardManifest,
    blocks_of,
    open_shards,
    read_any_manifest,
)
from lectern_common.tokens.tokenizer_map import (
    TokenizerMap,
    differing_ids,
    read_dataset_map,
    require_same_tokens,
    tokenizer_sha256,
)
from lectern_common.words import counted
from protos import teacher_pb2

_NAMED_IDS = 5


@dataclass(frozen=True)
class Untaught:
    """Ids of the student in which its teacher has no say: the loss gives them probability 0 there.

    Attributes:
        student_only: how many ids, the last ones, are beyond the teacher's logits.
        ids: those within, at which the tokenizers differ.
        note: what was checked, in words; None if there was nothing to check.
    """

    student_only: int = 0
    ids: tuple[int, ...] = ()
    note: str | None = None


NOTHING_UNTAUGHT = Untaught()


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a run's student and data. None means unknown.

    Attributes:
        width: the student's logits.
        tokens: the student's token-to-id map.
        manifest: of the training shards; None for synthetic data.
        dataset: their folder.
        validation: folder of other validation shards.
        prompts: folder of prompts.
    """

    width: int | None
    tokens: TokenizerMap | None
    manifest: ShardManifest | None = None
    dataset: Path | None = None
    validation: Path | None = None
    prompts: Path | None = None

    @property
    def folders(self) -> list[Path]:
        """The datasets to search; [] if there is nothing to search."""
        folders = (self.dataset, self.validation, self.prompts)
        return [folder for folder in folders if folder is not None]


def require_one_vocabulary(
    spec: RunSpec,
    teacher: teacher_pb2.Model,
    teacher_tokens: Callable[[], TokenizerMap],
    own: Vocabulary,
) -> Untaught:
    """Returns the ids that the teacher cannot teach, none of which the data uses.

    Args:
        spec: a spec that distils.
        teacher: the answer of GetModel.
        teacher_tokens: fetches the teacher's map; called only if the hashes differ.
        own: the student's and the data's.

    Raises:
        TokenizerMismatch: the data uses an id that means something else to the teacher, or cannot
            be searched.
        Incompatible: a head is too narrow for that, or the objective needs what the teacher lacks.
    """
    may_differ = spec.teacher is not None and spec.teacher.vocabulary == "checked"
    searchable = may_differ and own.manifest is not None and bool(own.folders)
    student_only = max(0, (own.width or 0) - teacher.logit_width)
    if student_only and not searchable:
        raise Incompatible(
            f"the student has {own.width} logits, but the teacher only {teacher.logit_width}; the "
            "teacher must cover every id of the student" + _way_out(spec, own)
        )
    too_few = own.width is not None and own.width < teacher.num_tokens
    if too_few and not (searchable and teacher.tokenizer_sha256):
        raise Incompatible(
            f"the student has only {own.width} logits, too few for the teacher's "
            f"{teacher.num_tokens} tokens" + _way_out(spec, own)
        )
    maps = _maps(spec, teacher, teacher_tokens, own, searchable=searchable)
    differing = differing_ids(*(tokens for _, tokens in maps[:2])) if len(maps) > 1 else set()
    absent = dict.fromkeys(range(teacher.logit_width, own.width or 0), "the teacher")
    if too_few and own.width is not None:
        beyond = (one for one in _ids(maps, teacher_tokens) if one >= own.width)
        absent |= dict.fromkeys(beyond, "the student")
    if not differing and not absent:
        return NOTHING_UNTAUGHT
    used = used_ids(own.folders, differing | absent.keys())
    if used is None or used:
        raise _mismatch(maps, differing, absent, used)
    return _untaught(spec, teacher, own, differing, student_only)


def require_known_ids(
    folders: Sequence[Path], of_data: TokenizerMap, student: TokenizerMap
) -> str | None:
    """Returns what was checked if data and student differ in ids; None if they do not.

    Raises:
        TokenizerMismatch: the data uses an id that means something else to the student.
    """
    differing = differing_ids(of_data, student)
    if not differing:
        return None
    used = used_ids(folders, differing)
    if used is None or used:
        raise _mismatch([("data", of_data), ("student", student)], differing, {}, used)
    return (
        f"the tokenizers of data and student differ at {counted(len(differing), 'id')}; the data "
        "was searched and uses none of them"
    )


def used_ids(folders: Sequence[Path], ids: Iterable[int]) -> set[int] | None:
    """Returns which of these ids datasets use, or the first that were met; None if unreadable.

    Reads all tokens unless it meets one: about a second for a gigabyte.
    """
    wanted = np.fromiter(ids, np.int64)
    is_wanted = np.zeros(int(wanted.max(initial=0)) + 2, bool)
    is_wanted[wanted] = True
    last = len(is_wanted) - 1  # never wanted: larger ids are looked up there
    if not folders:
        return None
    try:
        for folder in folders:
            manifest = read_any_manifest(folder)
            begins = manifest.row_bos_id  # only in the rows, not in the shards
            if begins is not None and begins in wanted:
                return {begins}
            for _, block in blocks_of(open_shards(folder, manifest)):
                tokens = np.minimum(block, last)
                met = tokens[is_wanted[tokens]]
                if len(met):
                    return set(np.unique(met).tolist())
    except (CorruptData, NotFound):
        return None
    return set()


def _maps(
    spec: RunSpec,
    teacher: teacher_pb2.Model,
    teacher_tokens: Callable[[], TokenizerMap],
    own: Vocabulary,
    *,
    searchable: bool,
) -> list[tuple[str, TokenizerMap]]:
    """Returns the owners' maps, the teacher's and the one to compare it with first; [] if equal.

    Raises TokenizerMismatch or Incompatible if they differ and that cannot be checked.
    """
    sha256 = teacher.tokenizer_sha256
    of_data: TokenizerMap | None = None
    data_differs = own.manifest is not None and own.manifest.tokenizer_sha256 != sha256
    if data_differs and own.dataset is not None and (own.dataset / TOKENIZER_NAME).is_file():
        of_data = read_dataset_map(own.dataset / TOKENIZER_NAME)
    if not sha256:
        return []
    if own.tokens:
        if tokenizer_sha256(own.tokens) == sha256:
            return []
        if not searchable:
            require_same_tokens(teacher_tokens(), own.tokens)
        maps = [("teacher", teacher_tokens()), ("student", own.tokens)]
        return maps if of_data is None else [*maps, ("data", of_data)]
    if not data_differs:
        return []
    if of_data is None:
        raise Incompatible(
            f"the data at {spec.data.path} was prepared with a different tokenizer than that of "
            f"the teacher {teacher.model_id}; prepare it again with the teacher's tokenizer.json"
        )
    if not searchable:
        require_same_tokens(teacher_tokens(), of_data, own="data")
    return [("teacher", teacher_tokens()), ("data", of_data)]


def _ids(
    maps: list[tuple[str, TokenizerMap]], teacher_tokens: Callable[[], TokenizerMap]
) -> Iterable[int]:
    return (maps[0][1] if maps else teacher_tokens()).values()


def _way_out(spec: RunSpec, own: Vocabulary) -> str:
    """Returns what else would make it work."""
    if spec.teacher is not None and spec.teacher.vocabulary != "checked":
        return "; or set teacher.vocabulary to checked, if the data uses only ids that both have"
    if own.manifest is None:
        return "; synthetic data uses every id: only prepared data can show that it does not"
    return ""


def _mismatch(
    maps: Sequence[tuple[str, TokenizerMap]],
    differing: set[int],
    absent: dict[int, str],
    used: set[int] | None,
) -> Incompatible:
    """Returns the refusal, naming ids that differ, those that the data uses first.

    Args:
        maps: the owners' maps; [] if all are equal.
        differing: ids at which they differ.
        absent: ids beyond the logits of the named owner.
        used: those of them that the data uses; None if it could not be searched.
    """
    found = "the data cannot be searched for them"
    if used is not None:
        found = f"the data uses {', '.join(map(str, sorted(used)[:_NAMED_IDS]))}"
    if not differing:
        ids = sorted(used or absent)[:_NAMED_IDS]
        named = "; ".join(f"id {one} is beyond the logits of {absent[one]}" for one in ids)
        return Incompatible(f"{named}, and {found}; choose another student, or other data")
    by_id = [(owner, {one: token for token, one in tokens.items()}) for owner, tokens in maps]
    first = sorted(used or ()) + sorted(differing - (used or set()))
    named = "; ".join(
        f"id {one}: "
        + ", ".join(f"{owner} {json.dumps(tokens.get(one))}" for owner, tokens in by_id)
        for one in first[:_NAMED_IDS]
    )
    owners = " and ".join(owner for owner, _ in maps)
    return TokenizerMismatch(
        f"{owners} tokenizers differ: {named}; {found}. Prepare the data with the teacher's "
        "tokenizer, and choose a student that uses it"
    )


def _untaught(
    spec: RunSpec,
    teacher: teacher_pb2.Model,
    own: Vocabulary,
    differing: set[int],
    student_only: int,
) -> Untaught:
    """Returns the ids to leave to the student. Raises Incompatible if the objective needs them."""
    shared = min(teacher.logit_width, own.width or teacher.logit_width)
    ids = tuple(sorted(one for one in differing if one < shared))
    parts = []
    if student_only:
        parts.append(f"{counted(student_only, 'id')} beyond the teacher's {teacher.logit_width}")
    if differing:
        parts.append(f"{counted(len(differing), 'id')} at which the tokenizers differ")
    if own.width is not None and own.width < teacher.num_tokens:
        parts.append(f"the teacher's tokens beyond the student's {own.width} logits")
    what = " and ".join(parts)
    if (ids or student_only) and spec.objective.divergence == "reverse_kl":
        raise Incompatible(
            f"objective.divergence reverse_kl is infinite with {what}, which the teacher gives no "
            "probability; set forward_kl or jsd"
        )
    if ids and spec.teacher is not None and spec.teacher.representation == "sampled":
        raise Incompatible(
            f"teacher.representation sampled cannot leave out {what}, because the teacher may draw "
            "them; set hidden, dense or top_k"
        )
    return Untaught(student_only, ids, f"the data was searched and uses none of: {what}")
