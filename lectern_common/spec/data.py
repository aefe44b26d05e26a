"""The section `data` of a RunSpec: one dataset, or several sources that each have a teacher.

A run of several sources is, source by source, a run of one: `of_source` returns the spec of that
run, and whatever is checked of one dataset and its teacher is checked of each of them.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from lectern_common.errors import InvalidSpec, LecternError, error_of
from lectern_common.spec.refusals import Misfit
from lectern_common.spec.sections import (
    Positive,
    Probability,
    RelativePath,
    Section,
    TeacherSpec,
)
from lectern_common.tokens.chat_rows import LongChats

if TYPE_CHECKING:
    from lectern_common.spec.run_spec import RunSpec

MAX_SOURCES = 64
LABEL_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
LABEL_RULE = "letters, digits, dots, hyphens and underscores, at most 63, a letter or digit first"
# Without dots, because dotted paths name its settings.
TEACHER_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"
TEACHER_NAME_RULE = "letters, digits, hyphens and underscores, at most 63, a letter or digit first"

Label = Annotated[str, Field(pattern=LABEL_PATTERN)]
TeacherName = Annotated[str, Field(pattern=TEACHER_NAME_PATTERN)]
Teachers = Annotated[dict[TeacherName, TeacherSpec], Field(min_length=1, max_length=MAX_SOURCES)]


class SourceSpec(Section):
    """One of several datasets that a run mixes."""

    path: RelativePath
    """Dataset folder under the data root."""
    weight: Positive = 1.0
    """Share of the rows that are of this source, relative to the weights of the others."""
    teacher: TeacherName | None = None
    """Which of `teachers` scores its rows; null: none does, and they have cross entropy only."""
    name: Label | None = None
    """What metrics call it (the last part of path)."""

    @model_validator(mode="after")
    def _named_by_its_folder(self) -> Self:
        if self.name is None:
            name = PurePosixPath(self.path).name
            if not re.fullmatch(LABEL_PATTERN, name):
                raise ValueError(f"set name: the last part of path, {name!r}, is not {LABEL_RULE}")
            object.__setattr__(self, "name", name)
        return self

    @property
    def label(self) -> str:
        """Its name, which is known once it is resolved."""
        return self.name or ""


class DataSpec(Section):
    """Training and validation data. The rows of step s, and of which source each of them is, are a
    pure function of (seed, s)."""

    kind: Literal["shards", "synthetic"] = "shards"
    """shards: token shards with a manifest (`lectern data prepare`). synthetic: random tokens."""
    path: RelativePath | None = None
    """Dataset folder under the data root (kind shards)."""
    sources: Annotated[list[SourceSpec], Field(min_length=1, max_length=MAX_SOURCES)] | None = None
    """Several datasets instead of path, mixed by weight; see `data.sources`."""
    seq_len: Annotated[int, Field(ge=2, le=1 << 20)] = 1024
    """Tokens per row."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of rows, or of chats, from the end, to hold out for validation (0.01 without
    validation_path)."""
    validation_path: RelativePath | None = None
    """Dataset folder of the validation set, instead of validation_fraction."""
    attention_across_documents: bool | None = None
    """True: a row is one sequence. False: tokens attend only within their own document. null: false
    for chats, true for text."""
    long_chats: LongChats | None = None
    """What to do with chats of more than seq_len + 1 tokens (cut). cut: learn from their beginning,
    and leave the rest out. drop: leave them out. error: do not start. Only with chats."""
    max_bad_rows_fraction: Probability = 0.001
    """Largest share of rows, or of chats, with ids beyond the student's vocabulary; they are left
    out."""

    @model_validator(mode="after")
    def _validation_source(self) -> Self:
        if self.kind == "shards" and self.path is None and self.sources is None:
            raise ValueError("path is required with kind shards")
        if self.kind == "synthetic" and (self.path or self.validation_path or self.sources):
            raise ValueError("path and validation_path have no effect with kind synthetic")
        if self.sources is not None:
            self._require_sources_alone(self.sources)
        if self.kind == "synthetic":
            self._require_no_documents()
        if self.validation_path is not None and self.validation_fraction is not None:
            raise ValueError("set validation_fraction or validation_path, not both")
        if self.path is not None and self.validation_path == self.path:
            raise ValueError(
                "validation_path equals path, so the run would be validated on its training rows; "
                "set another path, or validation_fraction"
            )
        if self.validation_path is None and self.validation_fraction is None:
            object.__setattr__(self, "validation_fraction", 0.01)
        return self

    def _require_sources_alone(self, sources: list[SourceSpec]) -> None:
        if self.path is not None:
            raise ValueError("set path or sources, not both")
        if self.validation_path is not None:
            raise ValueError(
                "validation_path has no effect with sources: validation_fraction of each of them "
                "is held out; remove it"
            )
        for what in ("name", "path"):
            values = [getattr(source, what) for source in sources]
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise ValueError(f"two of sources have the {what} {twice!r}; each needs its own")

    def _require_no_documents(self) -> None:
        if self.attention_across_documents is False:
            raise ValueError("attention_across_documents has no effect with kind synthetic")
        if self.long_chats is not None:
            raise ValueError("long_chats has no effect with kind synthetic")
        object.__setattr__(self, "attention_across_documents", True)


def require_sources_fit(spec: "RunSpec") -> None:
    """Raises Misfit unless sources and teachers belong together, and the rest suits them."""
    sources, teachers = spec.data.sources, spec.teachers
    if teachers is not None and spec.teacher is not None:
        raise Misfit("set teacher or teachers, not both", "teacher", "teachers")
    if sources is None:
        if teachers is not None:
            raise Misfit(
                "teachers has no effect without data.sources, which say whose rows each of them "
                "scores; set teacher, or data.sources",
                "teachers",
                "data.sources",
            )
        return
    if spec.teacher is not None:
        raise Misfit(
            "teacher has no effect with data.sources, each of which names one of teachers; put it "
            "there",
            "teacher",
            "data.sources",
        )
    _require_teachers_used(spec, teachers or {})
    if spec.rollout is not None:
        raise Misfit(
            "rollout does not go with data.sources yet: the student's own rows have no source "
            "whose teacher would score them; remove one of the two",
            "rollout",
            "data.sources",
        )


def _require_teachers_used(spec: "RunSpec", teachers: Mapping[str, TeacherSpec]) -> None:
    sources = spec.data.sources or []
    for index, source in enumerate(sources):
        if source.teacher is not None and source.teacher not in teachers:
            known = ", ".join(teachers) or "none"
            raise Misfit(
                f"is {source.teacher!r}, which is not one of teachers; there: {known}",
                f"data.sources.{index}.teacher",
            )
    used = {source.teacher for source in sources}
    for name, teacher in teachers.items():
        if name not in used:
            raise Misfit(
                f"no source names the teacher {name!r}; remove it, or name it in data.sources",
                f"teachers.{name}",
            )
        if teacher.record_to is not None:
            raise Misfit(
                "record_to does not go with data.sources; record each source first with `lectern "
                "precompute`, and give the records to teachers",
                f"teachers.{name}.record_to",
            )
    if spec.objective.alpha == 1 and teachers:
        raise Misfit(
            "teachers has no effect with objective.alpha 1 (only cross entropy); remove it, or "
            "lower alpha",
            "teachers",
            "objective.alpha",
        )
    if spec.objective.alpha < 1 and not teachers:
        raise Misfit(
            f"teachers is required: objective.alpha is {spec.objective.alpha:g}, so the run "
            "distils; name a teacher for a source, or set alpha 1 for cross entropy only",
            "teachers",
            "objective.alpha",
        )


def of_source(spec: "RunSpec", source: SourceSpec) -> "RunSpec":
    """Returns the spec of the run that has only this source, and its teacher.

    It is for checks and for opening its data, never written. Without a teacher its objective is
    cross entropy only.
    """
    teacher = None if source.teacher is None else (spec.teachers or {})[source.teacher]
    objective = spec.objective
    if teacher is None:
        objective = objective.model_copy(update={"alpha": 1.0})
    data = spec.data.model_copy(update={"path": source.path, "sources": None})
    update = {"teacher": teacher, "teachers": None, "data": data, "objective": objective}
    return spec.model_copy(update=update)


@contextmanager
def of_its_source(spec: "RunSpec", index: int) -> Iterator[None]:
    """Says in errors of checks of `of_source` which source they are about, and calls its fields so.

    Raises:
        LecternError: of the same kind as the body's.
    """
    source = (spec.data.sources or [])[index]
    try:
        yield
    except InvalidSpec as error:
        problems = [
            (_in_several(field, spec, index), _in_several(why, spec, index))
            for field, why in error.problems
        ]
        raise InvalidSpec(
            [(field, f"source {source.label}: {why}") for field, why in problems]
        ) from error
    except LecternError as error:
        said = _in_several(str(error), spec, index)
        named = error_of(error.reason, f"source {source.label}: {said}")
        field = getattr(error, "field", None)
        if field is not None:
            named.__dict__["field"] = _in_several(field, spec, index)
        raise named from error


def _in_several(words: str, spec: "RunSpec", index: int) -> str:
    """Returns words about the run of one source with its fields as the run of several has them."""
    teacher = (spec.data.sources or [])[index].teacher
    words = re.sub(r"(?<![\w.])data\.path\b", f"data.sources.{index}.path", words)
    return re.sub(r"(?<![\w.])teacher(?=\.[a-z])|^teacher$", f"teachers.{teacher}", words)
