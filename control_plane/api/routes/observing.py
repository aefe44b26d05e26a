"""Routes about the control plane itself: its alerts, metrics for Prometheus, its version."""

import asyncio
import platform
import shutil
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import Response

from control_plane.api.problems import PROBLEM
from control_plane.api.requests import Plane
from control_plane.observing.metrics import CONTENT_TYPE, Figures, exposition
from control_plane.plane import ControlPlane
from control_plane.reading.feed import MAX_STREAMS
from control_plane.runs.alerts import MAX_ALERTS
from control_plane.views.alerts import AlertsView, AlertTestView, alert_view
from control_plane.views.service import VersionView

_NO_WEBHOOK: dict[int | str, dict[str, Any]] = {
    409: {**PROBLEM, "description": "No webhook is set"}
}

router = APIRouter()


@router.get("/alerts", response_model=AlertsView)
def list_alerts(
    plane: Plane,
    after: Annotated[int, Query(ge=0, le=2**53, description="Only those after this `seq`")] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_ALERTS)] = 100,
) -> AlertsView:
    """Lists the last alerts, newest first, and how their delivery stands."""
    receiver = plane.deliveries.receiver
    return AlertsView(
        receiver=None if receiver is None else receiver.shown,
        alerts=[alert_view(alert) for alert in plane.alerts.newest(after, limit)],
    )


@router.post("/alerts/test", response_model=AlertTestView, responses=_NO_WEBHOOK)
async def test_alert(plane: Plane) -> AlertTestView:
    """Sends a test alert to the webhook now, and tells what its receiver answered."""
    answer = await asyncio.wrap_future(plane.deliveries.test())
    receiver = plane.deliveries.receiver
    return AlertTestView(
        receiver="" if receiver is None else receiver.shown,
        delivered=answer.delivered,
        status=answer.status,
        said=answer.said,
        error=answer.error,
        seconds=answer.seconds,
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def get_metrics(plane: Plane) -> Response:
    """Returns the control plane's figures in Prometheus' text format."""
    teachers = await plane.teachers.reachable()
    figures = await asyncio.to_thread(_figures, plane, teachers)
    return Response(exposition(figures), media_type=CONTENT_TYPE)


@router.get("/version", response_model=VersionView)
def get_version(plane: Plane) -> VersionView:
    """Tells which release serves, on which database schema, and since when."""
    return VersionView(
        version=version("lectern"),
        python=platform.python_version(),
        schema_revision=plane.schema,
        started_at=plane.started_at,
    )


def _figures(plane: ControlPlane, teachers: Mapping[str, bool]) -> Figures:
    """Returns what the metrics show. Blocks."""
    disk = None
    with suppress(OSError):
        usage = shutil.disk_usage(plane.roots.runs)
        disk = usage.total, usage.free
    return Figures(
        now=plane.clock(),
        started_at=plane.started_at,
        info={
            "version": version("lectern"),
            "python": platform.python_version(),
            "schema_revision": plane.schema,
        },
        runs=plane.runs.by_state(),
        queue_limit=plane.max_queued,
        look_age_seconds=plane.readiness.look_age_seconds(),
        streams=plane.feed.streams,
        streams_limit=MAX_STREAMS,
        disk=disk,
        teachers=teachers,
        restarts=dict(plane.commands.restarts),
        alerts_undelivered=plane.alerts.undelivered(),
    )
