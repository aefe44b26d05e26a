"""Which settings of a spec differ from their defaults, by dotted path."""

import json
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from lectern_common.spec.run_spec import LABELS, RunSpec
from lectern_common.tokens.chat_rows import LONG_CHATS

# Null in a spec that leaves them open; the rest of the spec, or the data, decides them then.
_DECIDED = frozenset(
    {
        "teacher.top_k",
        "teacher.num_draws",
        "data.validation_fraction",
        "data.attention_across_documents",
        "data.long_chats",
        "objective.beta",
        "schedule.warmup_steps",
        "batch.micro_batch_sequences",
        "evaluation.prompt_tokens",
        "evaluation.metric_goal",
        "device.max_restarts",
    }
)


def changed_settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a resolved spec that are not what it has unless somebody sets them.

    A setting without a default, such as the name of the dataset, always differs. One whose default
    is null and stands for what the rest of the spec decides, such as the warm-up, differs if it is
    not that. A section that is absent has no settings. The name and the labels are none.

    Args:
        spec: as JSON, of this or an earlier release; unknown fields are returned as well.
    """
    found = {
        path: value
        for path, value in _leaves(spec, "")
        if path not in ("name", *LABELS) and value != _defaults().get(_as_of_one(path), None)
    }
    if not found.keys().isdisjoint(_DECIDED):
        decided = _decided(json.dumps(spec))
        found = {
            path: value
            for path, value in found.items()
            if path not in _DECIDED or value != decided.get(path)
        }
    return found


def _as_of_one(path: str) -> str:
    """Returns what the setting of one of several teachers is called if there is only one."""
    parts = path.split(".")
    return ".".join(["teacher", *parts[2:]]) if parts[0] == "teachers" else path


@lru_cache(maxsize=4096)
def _decided(text: str) -> dict[str, Any]:
    """Returns what a spec, as JSON, has for each of _DECIDED if that is not set."""
    spec = json.loads(text)
    chats = isinstance(spec.get("data"), dict) and spec["data"].get("long_chats") is not None
    for path in _DECIDED:
        section, _, name = path.partition(".")
        if isinstance(spec.get(section), dict):
            spec[section].pop(name, None)
    try:
        without = RunSpec.model_validate(spec).model_dump(mode="json")
    except ValidationError:  # of another release, or damaged
        return {}
    decided = {path: value for path, value in _leaves(without, "") if path in _DECIDED}
    # These two are decided by the data, which is chats if the second one is there.
    of_data = {"data.attention_across_documents": not chats, "data.long_chats": LONG_CHATS}
    return {**decided, **of_data}


def _leaves(values: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        path = f"{above}{name}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}.")
        else:
            yield path, value


@cache
def _defaults() -> dict[str, Any]:
    return dict(_defaults_of(RunSpec, ""))


def _defaults_of(model: type[BaseModel], above: str) -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        path = f"{above}{name}"
        section = section_of(field.annotation)
        if section is not None:
            yield from _defaults_of(section, f"{path}.")
        default = field.get_default(call_default_factory=True)
        if default is not PydanticUndefined and not isinstance(default, BaseModel):
            yield path, list(default) if isinstance(default, tuple) else default


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Returns the model of a field that is a section, or a section or null."""
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else [annotation]
    return next(
        (one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None
    )
