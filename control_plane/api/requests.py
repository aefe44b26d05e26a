"""What routes take from a request: the plane, a run's id, its query and JSON, changes of a spec."""

import difflib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_args, get_origin

from fastapi import Depends, Header, Path, Request, params
from fastapi.dependencies.utils import get_flat_params
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException

from control_plane.plane import ControlPlane
from control_plane.runs.record import StopAt
from lectern_common.errors import InvalidRequest, InvalidSpec
from lectern_common.json_lines import MAX_COUNT
from lectern_common.spec.load import parse_spec
from lectern_common.spec.run_spec import (
    HAS_NO_EFFECT_BESIDE_THE_DEFAULT_OF,
    LABELS,
    NAME_PATTERN,
    RunSpec,
)
from lectern_common.words import inert_name

_MAX_NAME = 60  # characters of a query parameter's name that a message repeats

_KEY = re.compile(r"^[\x21-\x7e]{1,200}$")
_Model = TypeVar("_Model", bound=BaseModel)


async def _plane(request: Request) -> ControlPlane:
    plane: ControlPlane = request.app.state.plane
    return plane


Plane = Annotated[ControlPlane, Depends(_plane)]
IdempotencyKey = Annotated[
    str | None,
    Header(description="Repeating a request with the same key and body creates no second run."),
]
RunId = Annotated[str, Path(pattern=NAME_PATTERN, description="As returned by POST /runs.")]


async def require_known_query(request: Request) -> None:
    """Raises unless the route has every query parameter of the request; of every route.

    Left out, a misspelt filter would answer with all there is, as if it had been applied.

    Raises:
        RequestValidationError: names each parameter that is unknown, or given twice although it
            takes one value.
    """
    query = request.query_params
    takes_several = _query_of(request.scope["route"]) if query else {}
    problems = []
    for name in query:
        if name not in takes_several:
            close = difflib.get_close_matches(name, takes_several, n=1)
            known = ", ".join(takes_several) or "none"
            why = f"did you mean {close[0]}?" if close else f"known here: {known}"
            problems.append((inert_name(name[:_MAX_NAME]), f"unknown query parameter; {why}"))
        elif len(query.getlist(name)) > 1 and not takes_several[name]:
            problems.append((name, "is given more than once"))
    if problems:
        raise RequestValidationError(
            [{"type": "query", "loc": ("query", name), "msg": why} for name, why in problems]
        )


def _query_of(route: APIRoute) -> dict[str, bool]:
    """Returns the query parameters that a route declares, and whether each takes several values."""
    types = {
        field.alias: field.field_info.annotation
        for field in get_flat_params(route.dependant)
        if isinstance(field.field_info, params.Query)
    }
    return {
        name: any(get_origin(part) is list for part in (kind, *get_args(kind)))
        for name, kind in types.items()
    }


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


def checked_key(key: str | None) -> str | None:
    """Returns an Idempotency-Key. Raises InvalidRequest unless it can be one, or is None."""
    if key is not None and not _KEY.match(key):
        why = "must be 1 to 200 printable ASCII characters without spaces"
        raise InvalidRequest(why, field="Idempotency-Key")
    return key


async def json_model(request: Request, model: type[_Model], *, required: bool = True) -> _Model:
    """Returns the body as a strict model of a JSON object; of an empty one if it may be absent.

    Raises:
        RequestValidationError: it does not fit; names each field.
    """
    data = await (json_object(request) if required else optional_json_object(request))
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise RequestValidationError(
            [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
        ) from None


async def optional_json_object(request: Request) -> dict[str, Any]:
    return await json_object(request) if await request.body() else {}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StopBody(_Body):
    at: Annotated[StopAt, Field(strict=False)] = StopAt.NOW


class ForkBody(_Body):
    checkpoint: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = None
    changes: dict[str, Any] = {}


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


def with_labels(spec: RunSpec, labels: Mapping[str, Any]) -> RunSpec:
    """Returns the spec with the given labels replaced.

    Raises:
        InvalidSpec: a field is no label, or has no valid value; names every such field.
    """
    why = f"only {', '.join(LABELS)} can be changed here"
    others = [name for name in labels if name in RunSpec.model_fields and name not in LABELS]
    problems = [(name, why) for name in others]
    try:
        spec = with_changes(spec, {k: v for k, v in labels.items() if k not in others})
    except InvalidSpec as error:
        problems += error.problems
    if problems:
        raise InvalidSpec(problems)
    return spec


def _merged(old: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for name, value in changes.items():
        before = merged.get(name)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            value = _merged(before, value)
        merged[name] = value
    return merged
