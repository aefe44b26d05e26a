"""What routes take from a request: the plane, a run's id, strict JSON, changes of a spec."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Path, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException

from control_plane.plane import ControlPlane
from control_plane.runs.record import StopAt
from lectern_common.errors import InvalidRequest, InvalidSpec
from lectern_common.run.untrusted import MAX_COUNT
from lectern_common.spec.load import parse_spec
from lectern_common.spec.run_spec import (
    HAS_NO_EFFECT_BESIDE_THE_DEFAULT_OF,
    NAME_PATTERN,
    RunSpec,
)


async def _plane(request: Request) -> ControlPlane:
    plane: ControlPlane = request.app.state.plane
    return plane


Plane = Annotated[ControlPlane, Depends(_plane)]
RunId = Annotated[str, Path(pattern=NAME_PATTERN, description="As returned by POST /runs.")]


async def json_object(request: Request) -> dict[str, Any]:
    """Returns the body, which must be a JSON object of content type application/json.

    A form submitted by another site's page cannot have that type.

    Raises:
        HTTPException: 400 or 415.
        InvalidRequest: it is JSON, but not an object.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "send the body as content-type application/json")
    text = await request.body()
    try:
        data = json.loads(text.decode(), object_pairs_hook=_unique)
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeError:
        raise HTTPException(400, "the body is not valid Unicode") from None
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise InvalidRequest("the body must be a JSON object")
    return data


async def optional_json_object(request: Request) -> dict[str, Any]:
    return await json_object(request) if await request.body() else {}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StopBody(_Body):
    at: Annotated[StopAt, Field(strict=False)] = StopAt.NOW


class ForkBody(_Body):
    checkpoint: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = None
    changes: dict[str, Any] = {}


_AnyBody = TypeVar("_AnyBody", bound=_Body)


async def body_of(kind: type[_AnyBody], request: Request) -> _AnyBody:
    """Returns the request's body, which may be absent.

    Raises:
        InvalidSpec: names every field that is wrong.
    """
    try:
        return kind.model_validate(await optional_json_object(request))
    except ValidationError as error:
        raise InvalidSpec(
            [(".".join(map(str, one["loc"])), str(one["msg"])) for one in error.errors()]
        ) from None


def json_body(schema: dict[str, Any], *, required: bool) -> dict[str, Any]:
    """Returns the OpenAPI description of a body that `json_object` reads."""
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": required, "content": content}}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{', '.join(twice)} is given twice")
    return found


def with_changes(spec: RunSpec, changes: Mapping[str, Any]) -> RunSpec:
    """Returns the spec with the given fields of its sections replaced. Raises InvalidSpec.

    A field that has an effect only beside another one becomes null if the other gets its default:
    the stored spec has a value there that the user may never have set.
    """
    merged = _merged(spec.model_dump(mode="json"), changes)
    for dependent, on in HAS_NO_EFFECT_BESIDE_THE_DEFAULT_OF.items():
        section, name = dependent.split(".")
        changed, on_name = changes.get(section), on.split(".")[1]
        if isinstance(changed, Mapping) and on_name in changed and name not in changed:
            default = getattr(RunSpec.model_fields[section].default, on_name)
            if changed[on_name] == default:
                merged[section][name] = None
    return parse_spec(merged)


def _merged(old: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for name, value in changes.items():
        before = merged.get(name)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            value = _merged(before, value)
        merged[name] = value
    return merged
