"""Routes that list teachers, datasets, records and models, and tell if this process is ready."""

import asyncio

from fastapi import APIRouter, Response

from control_plane.api.problems import problem
from control_plane.api.requests import Plane
from control_plane.reading import catalog
from control_plane.views.catalog import DatasetsView, ModelsView, RecordsView
from control_plane.views.service import DiskView, HealthView, ReadyView
from control_plane.views.teachers import TeachersView

router = APIRouter()


@router.get("/teachers", response_model=TeachersView)
async def list_teachers(plane: Plane) -> TeachersView:
    """Lists the configured teachers and those that runs use, with their current state."""
    asked_by = await asyncio.to_thread(plane.teachers_of_runs)
    teachers = await plane.teachers.views(asked_by)
    accounts = [account for teacher in teachers for account in teacher.accounts]
    names = await asyncio.to_thread(plane.runs.names, {account.run_id for account in accounts})
    for account in accounts:
        account.name = names.get(account.run_id)
    return TeachersView(teachers=teachers)


@router.get("/datasets", response_model=DatasetsView)
def list_datasets(plane: Plane) -> DatasetsView:
    """Lists the datasets under the data root."""
    return DatasetsView(datasets=catalog.datasets(plane.roots.data))


@router.get("/records", response_model=RecordsView)
def list_records(plane: Plane) -> RecordsView:
    """Lists the records of teachers under the data root."""
    return RecordsView(records=catalog.records(plane.roots.data))


@router.get("/models", response_model=ModelsView)
def list_models(plane: Plane) -> ModelsView:
    """Lists the model folders under the models root."""
    return ModelsView(models=catalog.models(plane.roots.models))


@router.get("/disk", response_model=DiskView)
def get_disk(plane: Plane) -> DiskView:
    """Tells what is free on the disk of the run folders, and what the next checkpoints need."""
    return plane.disk()


@router.get("/healthz", response_model=HealthView)
async def healthz() -> HealthView:
    """Answers 200 while the process is alive."""
    return HealthView(status="ok")


@router.get("/readyz", response_model=ReadyView, response_model_exclude_none=True)
def readyz(plane: Plane) -> ReadyView | Response:
    """Answers 200 while the control plane accepts and manages runs, otherwise 503.

    `errors` then names each broken part: `reconcile_loop`, `database`, `disk`, or `stopping`.
    """
    broken = plane.unready()
    if broken:
        detail = "not ready: " + "; ".join(f"{part}: {why}" for part, why in broken.items())
        return problem(
            503,
            detail,
            "not_ready",
            retryable=True,
            errors=list(broken.items()),
            headers={"Retry-After": "1"},
        )
    return ReadyView(
        status="ready",
        max_running_runs=plane.devices.max_running,
        cuda_devices=len(plane.devices.cuda),
        slowed=plane.slowed() or None,
    )
