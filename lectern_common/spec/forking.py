"""The spec of a fork: a new run from a checkpoint of another, and what it may change.

A fork may change whatever leaves the checkpoint's weights and optimizer state meaningful: all but
the student itself.
"""

from collections.abc import Callable, Mapping
from typing import Any

from lectern_common.errors import InvalidSpec
from lectern_common.spec.load import parse_spec
from lectern_common.spec.run_spec import RunSpec
from lectern_common.spec.sections import OF_SERVERS
from lectern_common.spec.suites import harness_tasks

# Of the student only how it is computed.
STUDENT_MAY_CHANGE = ("dtype",)
_DATASETS = ("kind", "path", "validation_path")
_SUFFIX = "-fork"
_MAX_NAME = 63
_SHAPE = "the checkpoint holds weights of that shape"
_WHY_NOT = {
    "init": "the checkpoint's weights began as those, and the student's tokenizer comes from there",
    "revision": "the checkpoint's weights began as those of that revision",
    "config": _SHAPE,
    "keep_every_nth_layer": _SHAPE,
    "lora": "the checkpoint holds those adapters, or whole weights without any",
}


def forked_spec(source: RunSpec, changes: Mapping[str, Any], step: int) -> RunSpec:
    """Returns the spec of a fork; its name is that of the source with `-fork` unless changed.

    A setting that only makes sense beside another one gets its default, unless it is given, when
    the other one changes: the source's spec has a value there that nobody may ever have set.

    Args:
        source: of the run to fork.
        changes: the part of a RunSpec that differs.
        step: of the checkpoint.

    Raises:
        InvalidSpec: names every field of the student that differs; or every invalid one; or the
            fork would make no step.
    """
    before = source.model_dump(mode="json")
    if problems := list(_of_student(before["student"], changes)):
        raise InvalidSpec(problems)
    merged = _merged(before, changes)
    merged["name"] = changes.get("name", _derived(source.name))
    _drop_others_records(merged, changes)
    for section, name, on, is_left_out in _DEPENDENTS:
        old, given, new = before[section], changes.get(section), merged.get(section)
        if not (isinstance(old, dict) and isinstance(given, Mapping) and isinstance(new, dict)):
            continue
        differs = any(key in given and given[key] != old.get(key) for key in on)
        if differs and name not in given and is_left_out(old, new):
            new.pop(name, None)
    spec = parse_spec(merged)
    if spec.schedule.steps <= step:
        why = (
            f"is {spec.schedule.steps}, but the checkpoint is of step {step}, so no step would be "
            f"made: set more than {step}"
        )
        raise InvalidSpec([("schedule.steps", why)])
    return spec


def _drop_others_records(merged: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Removes what the fork does not share with its source: the record that that one keeps.

    And, if the fork learns from a server and its source from a record, or the other way round, the
    one that it does not learn from.
    """
    teacher, given = merged.get("teacher"), changes.get("teacher")
    given = given if isinstance(given, Mapping) else {}
    if not isinstance(teacher, dict):
        return
    left_out = {"record_to"}
    if given.get("record") is not None:
        left_out |= {"address", *OF_SERVERS}
    if given.get("address"):
        left_out |= {"record"}
    merged["teacher"] = {
        name: value for name, value in teacher.items() if name in given or name not in left_out
    }


def _of_student(before: Mapping[str, Any], changes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns a (field, reason) pair for each change of the student that a fork may not make."""
    if "student" not in changes:
        return []
    what = "a fork may not change it; create a new run for another student"
    after = changes["student"]
    if not isinstance(after, Mapping):
        return [("student", f"must be an object with what changes; {what}")]
    return [
        (
            f"student.{name}",
            f"was {before[name]!r}, is {value!r}: {_WHY_NOT[name]}, so {what}, with the run's "
            "export as student.init if it should go on from these weights",
        )
        for name, value in after.items()
        if name in _WHY_NOT and not _same(before[name], value)
    ]


def _same(before: Any, after: Any) -> bool:
    """Returns whether a change leaves a setting as it is; an object may give a part of it."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        return all(name in before and _same(before[name], after[name]) for name in after)
    return bool(before == after)


def _derived(name: str) -> str:
    return name[: _MAX_NAME - len(_SUFFIX)].rstrip("-") + _SUFFIX


def _merged(old: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for name, value in changes.items():
        before = merged.get(name)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            value = _merged(before, value)
        merged[name] = value
    return merged


# (section, setting, settings of the section on which it depends, whether it then gets its default):
# the last is asked about the section's old and new values.
_Asked = Callable[[Mapping[str, Any], Mapping[str, Any]], bool]
_DEPENDENTS: tuple[tuple[str, str, tuple[str, ...], _Asked], ...] = (
    ("teacher", "top_k", ("representation",), lambda old, new: True),
    ("teacher", "num_draws", ("representation",), lambda old, new: True),
    ("objective", "temperature", ("alpha",), lambda old, new: new["alpha"] == 1),
    ("objective", "divergence", ("alpha",), lambda old, new: new["alpha"] == 1),
    ("objective", "beta", ("alpha",), lambda old, new: new["alpha"] == 1),
    ("objective", "beta", ("divergence",), lambda old, new: True),
    ("rollout", "prompts", ("prompt_tokens",), lambda old, new: True),
    ("rollout", "prompt_tokens", ("prompts",), lambda old, new: True),
    ("schedule", "final_fraction", ("decay",), lambda old, new: new["decay"] == "constant"),
    (
        "batch",
        "micro_batch_sequences",
        ("sequences_per_step",),
        lambda old, new: bool(old["micro_batch_sequences"] == old["sequences_per_step"]),
    ),
    ("data", "path", ("kind",), lambda old, new: new["kind"] == "synthetic"),
    ("data", "validation_path", ("kind",), lambda old, new: new["kind"] == "synthetic"),
    ("data", "validation_path", ("validation_fraction",), lambda old, new: True),
    ("data", "validation_fraction", ("validation_path",), lambda old, new: True),
    ("data", "attention_across_documents", _DATASETS, lambda old, new: True),
    ("data", "long_chats", _DATASETS, lambda old, new: True),
    ("device", "max_restarts", ("count",), lambda old, new: new["count"] == 1),
    ("evaluation", "prompt_tokens", ("prompts",), lambda old, new: not new["prompts"]),
    ("evaluation", "metric_goal", ("metric",), lambda old, new: True),
    ("evaluation", "code", ("suites",), lambda old, new: "code" not in new["suites"]),
    ("evaluation", "lm_eval", ("suites",), lambda old, new: not harness_tasks(new["suites"])),
)
