"""The route of a chart's series: buckets of each metric, as JSON or CSV."""

import gzip
import json
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Response

from control_plane.api.problems import NOT_FOUND
from control_plane.api.requests import Plane, RunId
from control_plane.reading.series.answers import as_columns, as_csv
from control_plane.reading.series.index import NOTHING
from control_plane.reading.series.marks import marks_of
from control_plane.reading.series.query import Steps, series_of
from control_plane.views.readings import SeriesView
from lectern_common.errors import InvalidRequest
from lectern_common.json_lines import MAX_COUNT

MAX_POINTS = 5000
# Smaller answers are sent as they are.
_COMPRESSED_FROM_BYTES = 4096

router = APIRouter()


@router.get(
    "/runs/{run_id}/series",
    response_model=SeriesView,
    responses={**NOT_FOUND, 200: {"content": {"text/csv": {"schema": {"type": "string"}}}}},
)
def get_series(
    plane: Plane,
    run_id: RunId,
    keys: Annotated[
        str | None, Query(max_length=20_000, description="Comma-separated; absent means all")
    ] = None,
    max_points: Annotated[int, Query(ge=16, le=MAX_POINTS, description="Of each key")] = 500,
    from_step: Annotated[int | None, Query(ge=0, lt=MAX_COUNT)] = None,
    to_step: Annotated[int | None, Query(ge=0, lt=MAX_COUNT)] = None,
    format: Annotated[
        Literal["json", "csv"] | None, Query(description="Absent means what Accept prefers")
    ] = None,
    accept: Annotated[str, Header()] = "",
    accept_encoding: Annotated[str, Header()] = "",
) -> Response:
    """Returns each metric over a range of steps as at most `max_points` buckets.

    A bucket has the mean, min and max of its values, and how many of them were not finite. If there
    are no more values than points, each is a bucket of its own.
    """
    folder = plane.folder(plane.runs.get(run_id))
    within = Steps(from_step or 0, MAX_COUNT if to_step is None else to_step)
    if within.first > within.last:
        raise InvalidRequest(f"from_step {from_step} is above to_step {to_step}", "from_step")
    wanted = None if keys is None else [key for key in keys.split(",") if key]
    indexed = plane.indexes.of(folder)
    path = folder.metrics_path
    try:
        answer = series_of(indexed, path, wanted, max_points=max_points, within=within)
    except FileNotFoundError:  # removed meanwhile
        indexed = NOTHING
        answer = series_of(indexed, path, wanted, max_points=max_points, within=within)
    if format == "csv" or (format is None and _prefers_csv(accept)):
        name = f'attachment; filename="{run_id}.csv"'
        text, kind = as_csv(answer.series), "text/csv"
        return _sent(text, kind, accept_encoding, {"Content-Disposition": name})
    body = {
        "run_id": run_id,
        "revision": indexed.revision,
        "cursor": str(indexed.position),
        "last_step": answer.last_step,
        "keys": answer.keys,
        "keys_left_out": answer.keys_left_out,
        "unknown_keys": [key for key in dict.fromkeys(wanted or ()) if key not in answer.keys],
        "series": {key: as_columns(buckets) for key, buckets in answer.series.items()},
        "marks": marks_of(folder, answer.non_finite, within),
    }
    text = json.dumps(body, allow_nan=False, separators=(",", ":"))
    return _sent(text, "application/json", accept_encoding, {})


def _prefers_csv(accept: str) -> bool:
    """Returns whether an Accept header names CSV, and JSON only after it, if at all."""
    kinds = [kind.partition(";")[0].strip().lower() for kind in accept.split(",")]
    named = [kind for kind in kinds if kind in ("text/csv", "application/json")]
    return named[:1] == ["text/csv"]


def _sent(text: str, kind: str, accept_encoding: str, headers: dict[str, str]) -> Response:
    """Returns the response, compressed if it is large and the client accepts that."""
    data = text.encode()
    headers = {**headers, "Vary": "Accept, Accept-Encoding"}
    codings = [coding.strip().lower() for coding in accept_encoding.split(",")]
    if len(data) >= _COMPRESSED_FROM_BYTES and "gzip" in codings:
        data, headers["Content-Encoding"] = gzip.compress(data, 1, mtime=0), "gzip"
    return Response(data, headers=headers, media_type=kind)
