"""Routes that delete and prune runs, and adopt folders."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from control_plane.api.problems import CONFLICT
from control_plane.api.requests import Plane, RunId, json_body, json_model
from control_plane.runs.keeping.deletion import delete_run
from control_plane.runs.keeping.pruning import Criteria, prune
from control_plane.views.keeping import AdoptedView, PrunedView, adopted_view, pruned_view
from lectern_common.run.folder import RunFolder

router = APIRouter()


@router.delete("/runs/{run_id}", status_code=204, responses=CONFLICT)
def remove_run(plane: Plane, run_id: RunId) -> None:
    """Deletes a run that is not active, with its whole folder: checkpoints, metrics, export."""
    delete_run(plane.commands, RunFolder(plane.roots.runs / run_id))


@router.post(
    "/runs/prune",
    response_model=PrunedView,
    openapi_extra=json_body(Criteria.model_json_schema(), required=True),
)
async def prune_runs(request: Request, plane: Plane) -> PrunedView:
    """Deletes the runs at rest that meet criteria; with `dry_run`, the default, only lists them.

    At least one criterion is needed. A run that resumes by itself is never deleted.
    """
    criteria = await json_model(request, Criteria)
    pruned = await asyncio.to_thread(
        prune, plane.runs, plane.commands, plane.roots.runs, criteria, plane.clock()
    )
    return pruned_view(pruned)


class Adopt(BaseModel):
    """Which folders to adopt."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    run_ids: (
        Annotated[list[Annotated[str, Field(max_length=255)]], Field(max_length=10_000)] | None
    ) = None
    """null: all without a row, but for those of deleted runs, which must be named."""


@router.post(
    "/runs/adopt",
    response_model=AdoptedView,
    openapi_extra=json_body(Adopt.model_json_schema(), required=True),
)
async def adopt_runs(request: Request, plane: Plane) -> AdoptedView:
    """Makes rows of run folders that the database does not know, as after one was restored.

    Repeating the request changes nothing. A damaged folder is refused and not touched.
    """
    asked = await json_model(request, Adopt)
    return adopted_view(await asyncio.to_thread(plane.adoption.adopt, asked.run_ids))
