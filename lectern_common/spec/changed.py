"""Which settings of a spec differ from their defaults, by dotted path."""

from collections.abc import Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from lectern_common.spec.run_spec import LABELS, RunSpec


def changed_settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a resolved spec that are not as the schema's defaults have them.

    A setting without a default, such as the name of the dataset, always differs. So does one whose
    default is null and stands for what the spec decides, such as the warm-up. A section that is
    absent has no settings. The name and the labels are none.

    Args:
        spec: as JSON, of this or an earlier release; unknown fields are returned as well.
    """
    return {
        path: value
        for path, value in _leaves(spec, "")
        if path not in ("name", *LABELS) and value != _defaults().get(path, None)
    }


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
        section = _section(field.annotation)
        if section is not None:
            yield from _defaults_of(section, f"{path}.")
        default = field.get_default(call_default_factory=True)
        if default is not PydanticUndefined and not isinstance(default, BaseModel):
            yield path, list(default) if isinstance(default, tuple) else default


def _section(annotation: Any) -> type[BaseModel] | None:
    """Returns the model of a field that is a section, or a section or null."""
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else [annotation]
    return next(
        (one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None
    )
