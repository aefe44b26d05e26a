"""Reads a RunSpec from YAML or JSON, writes it back, and puts each problem in one sentence."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from lectern_common.errors import InvalidSpec
from lectern_common.spec.data import (
    LABEL_PATTERN,
    LABEL_RULE,
    TEACHER_NAME_PATTERN,
    TEACHER_NAME_RULE,
)
from lectern_common.spec.refusals import closest, problems_of
from lectern_common.spec.run_spec import NAME_PATTERN, NAME_RULE, TAG_PATTERN, TAG_RULE, RunSpec
from lectern_common.spec.sections import MODULE_PATTERN, MODULE_RULE
from lectern_common.words import inert_name

MAX_SPEC_BYTES = 256 * 1024
_RULES = {
    NAME_PATTERN: NAME_RULE,
    TAG_PATTERN: TAG_RULE,
    MODULE_PATTERN: MODULE_RULE,
    LABEL_PATTERN: LABEL_RULE,
    TEACHER_NAME_PATTERN: TEACHER_NAME_RULE,
}
SMALLEST = """\
name: my-run
teacher: {address: "127.0.0.1:50051"}
student: {init: Qwen/Qwen2.5-Coder-0.5B-Instruct}
data: {path: my-data}
"""
_EXAMPLE = f"A minimal spec (docs/run-spec.md lists every field):\n\n{SMALLEST}"


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice instead of keeping the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.YAMLError(
                f"{', '.join(twice)} given twice (line {node.start_mark.line + 1})"
            )
        return super().construct_mapping(node, deep)


def parse_spec(data: Any) -> RunSpec:
    """Returns the resolved spec from a mapping (parsed YAML or JSON).

    Raises:
        InvalidSpec: with one (field, message) pair for each problem.
    """
    if not isinstance(data, Mapping):
        raise InvalidSpec([("", f"a run spec is a mapping of sections. {_EXAMPLE}")])
    try:
        return RunSpec.model_validate(data)
    except ValidationError as error:
        problems = problems_of(error.errors(), unknown=did_you_mean, rules=_RULES)
        raise InvalidSpec(problems) from None


def load_spec(path: Path) -> RunSpec:
    """Returns the resolved spec from a YAML file.

    Raises:
        InvalidSpec: not readable, too large, not YAML, or not a valid spec.
    """
    return parse_spec(read_yaml(path, "run spec", _EXAMPLE))


def read_yaml(path: Path, what: str, example: str) -> Any:
    """Returns what a YAML file holds, with no key given twice.

    Args:
        path: the file.
        what: what it should hold, for messages.
        example: ends the message about an empty file.

    Raises:
        InvalidSpec: not readable, too large, empty, or not YAML.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_SPEC_BYTES + 1)
    except OSError as error:
        raise InvalidSpec([("", f"cannot read {inert_name(path)}: {error.strerror}")]) from None
    if len(text) > MAX_SPEC_BYTES:
        why = f"{inert_name(path)} is larger than {MAX_SPEC_BYTES} bytes, so it is not a {what}"
        raise InvalidSpec([("", why)])
    try:
        data = _UniqueKeyLoader(text).get_single_data()
    except (yaml.YAMLError, RecursionError, ValueError, KeyError, AttributeError) as error:
        # Not only YAMLError: a date of month 99 is a bare ValueError, `!!bool x` a KeyError.
        where = str(error).replace('in "<byte string>", ', "")
        raise InvalidSpec([("", f"{inert_name(path)} is not valid YAML: {where}")]) from None
    if data is None:
        raise InvalidSpec([("", f"{inert_name(path)} is empty. {example}")])
    return data


def continuing(old: RunSpec, new: RunSpec) -> RunSpec:
    """Returns the spec `new` that resumes `old`, with the warm-up of `old` unless it sets its own.

    The default depends on the number of steps, which a resume may change.

    Raises:
        InvalidSpec: that warm-up is longer than the run.
    """
    if "warmup_steps" in new.schedule.model_fields_set:
        return new
    data = new.model_dump(mode="json")
    data["schedule"]["warmup_steps"] = old.schedule.warmup_steps
    return parse_spec(data)


def dump_spec(spec: RunSpec) -> str:
    """Returns the resolved spec as YAML with every default; `load_spec` reads it back equal."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False)


def did_you_mean(location: Sequence[str | int]) -> str:
    """Returns the end of the message about an unknown field: a like one, or those that exist."""
    section: Any = RunSpec
    for part in location[:-1]:
        annotation = section.model_fields[str(part)].annotation
        options = getattr(annotation, "__args__", (annotation,))
        section = next(
            (
                option
                for option in options
                if isinstance(option, type) and issubclass(option, BaseModel)
            ),
            None,
        )
        if section is None:
            return ""
    known = [*section.model_fields]
    return closest(location[-1], known) or f"; known: {', '.join(known)}"
