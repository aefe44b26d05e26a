"""The FastAPI application: routes, page and access checks around one control plane."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.responses import FileResponse
from starlette.types import Lifespan

from control_plane.api.guard import LOOPBACK_HOSTS, Guard
from control_plane.api.openapi import completed
from control_plane.api.problems import OF_EVERY_ROUTE, handle_problems
from control_plane.api.requests import require_known_query
from control_plane.api.routes import (
    catalog,
    keeping,
    observing,
    runs,
    series,
    steering,
    streams,
    sweeps,
    tasks,
)
from control_plane.plane import ControlPlane

ROUTES = (runs, steering, keeping, tasks, sweeps, series, streams, catalog, observing)
WEB = Path(__file__).parent.parent / "web"


def create_app(
    plane: ControlPlane,
    *,
    token: str | None = None,
    read_token: str | None = None,
    allowed_hosts: Collection[str] = (),
) -> FastAPI:
    """Returns the application; its lifespan starts and stops the plane.

    Args:
        plane: opened, not started.
        token: bearer token that every request must carry, except for the page and health.
        read_token: another one, with which a request may only read.
        allowed_hosts: names accepted in the Host header, besides those of the loopback.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await plane.start()
        try:
            yield
        finally:
            await plane.stop()

    app = _described(lifespan)
    app.state.plane = plane
    handle_problems(app)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(WEB / "index.html")

    app.mount("/web", StaticFiles(directory=WEB))
    app.state.routes = [*app.routes, *(one for routes in ROUTES for one in routes.router.routes)]
    hosts = {*LOOPBACK_HOSTS, *allowed_hosts}
    app.add_middleware(Guard, hosts=hosts, token=token, read_token=read_token)
    return app


def document() -> dict[str, Any]:
    """Returns the OpenAPI document of every control plane of this release."""
    return _described().openapi()


def _described(lifespan: Lifespan[FastAPI] | None = None) -> FastAPI:
    """Returns an application with all routes of the REST interface."""
    app = FastAPI(
        title="Lectern control plane",
        description="Starts, watches and stops distillation runs.",
        version=version("lectern"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
    )
    for routes in ROUTES:
        app.include_router(
            routes.router,
            responses=OF_EVERY_ROUTE,
            dependencies=[Depends(require_known_query)],
        )
    described = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            completed(described())  # which FastAPI keeps
        return described()

    app.openapi = openapi  # type: ignore[method-assign]
    return app
