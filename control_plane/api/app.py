"""The FastAPI application: routes, page and access checks around one control plane."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.responses import FileResponse

from control_plane.api import catalog, runs, series, streams
from control_plane.api.guard import LOOPBACK_HOSTS, Guard
from control_plane.api.problems import OF_EVERY_ROUTE, handle_problems
from control_plane.plane import ControlPlane

WEB = Path(__file__).parent.parent / "web"


def create_app(
    plane: ControlPlane,
    *,
    token: str | None = None,
    allowed_hosts: Collection[str] = (),
) -> FastAPI:
    """Returns the application; its lifespan starts and stops the plane.

    Args:
        plane: opened, not started.
        token: bearer token that every request must carry, except for the page and health.
        allowed_hosts: names accepted in the Host header, besides those of the loopback.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await plane.start()
        try:
            yield
        finally:
            await plane.stop()

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
    app.state.plane = plane
    handle_problems(app)
    for routes in (runs, series, streams, catalog):
        app.include_router(routes.router, responses=OF_EVERY_ROUTE)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(WEB / "index.html")

    app.mount("/web", StaticFiles(directory=WEB))
    app.add_middleware(Guard, hosts={*LOOPBACK_HOSTS, *allowed_hosts}, token=token)
    return app
