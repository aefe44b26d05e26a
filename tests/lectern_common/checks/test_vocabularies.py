"""Heads and tokenizers of one family that differ: accepted if the data uses none of those ids."""

from pathlib import Path
from typing import Any

import pytest
import tokenizers

from lectern_common.checks.compatibility import (
    StudentFacts,
    require_data_fits,
    require_teacher_fits,
)
from lectern_common.checks.vocabularies import NOTHING_UNTAUGHT, Untaught, used_ids
from lectern_common.errors import Incompatible, InvalidSpec, TokenizerMismatch
from lectern_common.spec.load import parse_spec
from lectern_common.tokens.shards import TOKENIZER_NAME, read_manifest
from lectern_common.tokens.tokenizer_map import tokenizer_sha256
from protos import teacher_pb2
from tests.lectern_common.checks.test_compatibility import teacher
from tests.support.training.shards import write_shards

COMMON = {"a": 0, "b": 1, "c": 2}
# Both name id 3, but not alike; the teacher also names id 5.
TEACHER = {**COMMON, "<think>": 3, "<call>": 5}
STUDENT = {**COMMON, "<reserved>": 3}


def dataset(folder: Path, tokens: list[int], own: dict[str, int] = COMMON) -> Path:
    """Writes shards of these tokens with the tokenizer that made them."""
    write_shards(folder, tokens, shards=2, vocab_size=9, tokenizer_sha256=tokenizer_sha256(own))
    named = tokenizers.Tokenizer(tokenizers.models.WordLevel(own, "a"))
    named.save(str(folder / TOKENIZER_NAME))
    return folder


def check(
    folder: Path | None,
    *,
    width: int = 8,
    student: dict[str, int] | None = STUDENT,
    theirs: dict[str, int] = TEACHER,
    logits: int = 8,
    validation: Path | None = None,
    kind: Any = teacher_pb2.REPRESENTATION_DENSE,
    **sections: Any,
) -> Untaught:
    model = teacher(
        logit_width=logits,
        num_tokens=len(theirs) or logits,
        tokenizer_sha256=tokenizer_sha256(theirs) if theirs else "",
        representations=[teacher_pb2.RepresentationOffer(kind=kind, offered=True)],
    )
    spec = parse_spec(
        {
            "name": "a",
            "student": {"init": "small"},
            "data": {"path": "text", "seq_len": 4},
            **sections,
            "teacher": {"representation": "dense", **sections.get("teacher", {})},
        }
    )
    manifest = None if folder is None else read_manifest(folder)
    facts = StudentFacts(width, student, None)
    return require_teacher_fits(spec, model, lambda: theirs, facts, manifest, folder, validation)


USES_COMMON = [0, 1, 2, 2, 1, 0, 1]


def test_equal_vocabularies_have_nothing_to_search(tmp_path: Path) -> None:
    data = dataset(tmp_path / "text", USES_COMMON)
    assert check(data, student=COMMON, theirs=COMMON) is NOTHING_UNTAUGHT
    (tmp_path / "text/shard_00000.bin").unlink(missing_ok=True)
    assert check(data, student=COMMON, theirs=COMMON) is NOTHING_UNTAUGHT


def test_ids_that_the_data_does_not_use_may_differ(tmp_path: Path) -> None:
    found = check(dataset(tmp_path / "text", USES_COMMON))
    assert (found.student_only, found.ids) == (0, (3, 5))
    assert found.note is not None
    assert "searched and uses none of: 2 ids at which the tokenizers differ" in found.note


@pytest.mark.parametrize("owner", ["training", "validation"])
def test_a_used_id_that_differs_is_refused_and_named_with_every_owner(
    tmp_path: Path, owner: str
) -> None:
    used = dataset(tmp_path / "used", [0, 1, 2, 2, 1, 0, 3], {**COMMON, "<other>": 3})
    free = dataset(tmp_path / "free", USES_COMMON, {**COMMON, "<other>": 3})
    data, validation = (used, None) if owner == "training" else (free, used)
    words = r'teacher and student and data .* id 3: teacher "<think>", student "<reserved>", data '
    with pytest.raises(TokenizerMismatch, match=words + r'"<other>"; .*the data uses 3\.'):
        check(data, validation=validation)
    if owner == "validation":
        assert check(data).ids == (3, 5)


def test_without_the_students_tokenizer_the_datas_is_compared(tmp_path: Path) -> None:
    assert check(dataset(tmp_path / "text", USES_COMMON), student=None).ids == (3, 5)
    with pytest.raises(TokenizerMismatch, match=r'teacher and data .*id 5: teacher "<call>", data'):
        check(dataset(tmp_path / "used", [0, 1, 5, 2, 1]), student=None)


def test_a_wider_student_is_accepted_if_the_data_stays_below(tmp_path: Path) -> None:
    """As Qwen2.5 0.5B padded to 152,064 logits, from a teacher with 151,936."""
    free = dataset(tmp_path / "free", USES_COMMON)
    found = check(free, width=9, student=COMMON, theirs=COMMON, logits=6)
    assert (found.student_only, found.ids) == (3, ())
    assert found.note is not None and "3 ids beyond the teacher's 6" in found.note
    used = dataset(tmp_path / "used", [0, 1, 2, 7, 1])
    with pytest.raises(
        Incompatible, match="id 7 is beyond the logits of the teacher, and the data"
    ):
        check(used, width=9, student=COMMON, theirs=COMMON, logits=6)


def test_a_student_without_room_for_all_tokens_is_accepted_if_none_is_used(tmp_path: Path) -> None:
    five = {**COMMON, "<x>": 3, "<y>": 4}
    free = dataset(tmp_path / "free", USES_COMMON, five)
    found = check(free, width=4, student=five, theirs=five)
    assert (found.student_only, found.ids) == (0, ())
    assert found.note is not None and "the teacher's tokens beyond the student's 4" in found.note
    used = dataset(tmp_path / "used", [0, 4, 1, 1, 2], five)
    with pytest.raises(Incompatible, match="id 4 is beyond the logits of the student"):
        check(used, width=4, student=five, theirs=five)
    with pytest.raises(Incompatible, match="too few for the teacher's"):  # no map to look ids up
        check(free, width=2, student=None, theirs={}, logits=8)


def test_what_cannot_be_searched_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerMismatch, match='id 3: teacher "<think>", student "<reserved>"'):
        check(None, data={"kind": "synthetic", "seq_len": 4})
    with pytest.raises(Incompatible, match=r"must cover .*synthetic data uses every id"):
        check(
            None, width=9, student=COMMON, theirs=COMMON, data={"kind": "synthetic", "seq_len": 4}
        )
    broken = dataset(tmp_path / "text", USES_COMMON)
    for shard in broken.glob("*.bin"):
        shard.unlink()
    with pytest.raises(TokenizerMismatch, match="the data cannot be searched for them"):
        check(broken)


def test_the_option_same_accepts_no_difference(tmp_path: Path) -> None:
    free = dataset(tmp_path / "text", USES_COMMON)
    same = {"vocabulary": "same"}
    with pytest.raises(TokenizerMismatch, match="id 3: teacher"):
        check(free, teacher=same)
    with pytest.raises(Incompatible, match=r"or set teacher\.vocabulary to checked"):
        check(free, width=9, student=COMMON, theirs=COMMON, logits=6, teacher=same)
    with pytest.raises(Incompatible, match=r"too few .*or set teacher\.vocabulary to checked"):
        check(free, width=2, student=COMMON, theirs=COMMON, teacher=same)
    with pytest.raises(InvalidSpec, match=r"teacher\.vocabulary"):
        check(free, teacher={"vocabulary": "whatever"})


@pytest.mark.parametrize(
    ("sections", "kind", "words"),
    [
        (
            {"objective": {"divergence": "reverse_kl"}},
            teacher_pb2.REPRESENTATION_DENSE,
            r"reverse_kl is infinite with 2 ids at which .*set forward_kl or jsd",
        ),
        (
            {"teacher": {"representation": "sampled"}},
            teacher_pb2.REPRESENTATION_SAMPLED,
            r"sampled cannot leave out 2 ids at which .*set hidden, dense or top_k",
        ),
    ],
)
def test_objectives_that_need_what_the_teacher_cannot_say_are_refused(
    tmp_path: Path, sections: dict[str, Any], kind: int, words: str
) -> None:
    with pytest.raises(Incompatible, match=words):
        check(dataset(tmp_path / "text", USES_COMMON), kind=kind, **sections)


def test_data_may_differ_from_the_student_in_ids_that_it_does_not_use(tmp_path: Path) -> None:
    own = {**COMMON, "<other>": 3}
    free = dataset(tmp_path / "free", USES_COMMON, own)
    note = require_data_fits(free, read_manifest(free), STUDENT)
    assert note is not None and "differ at 1 id; the data was searched" in note
    used = dataset(tmp_path / "used", [0, 3, 1, 1], own)
    with pytest.raises(TokenizerMismatch, match='id 3: data "<other>", student "<reserved>"'):
        require_data_fits(used, read_manifest(used), STUDENT)
    with pytest.raises(TokenizerMismatch, match="the data uses 3"):
        require_data_fits(free, read_manifest(free), STUDENT, used)


def test_ids_are_found_in_every_shard(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "text", [5] * 99 + [70_000], shards=3)
    assert used_ids([folder], {70_000, 6}) == {70_000}
    assert used_ids([folder], {6, 69_999, 70_001}) == set()
    assert used_ids([folder], {5}) == {5}
    assert used_ids([], {5}) is None
    assert used_ids([tmp_path / "nothing"], {5}) is None
