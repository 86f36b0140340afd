"""The web application: a page, what the model is, and the endpoint that segments an image."""

import pathlib
from collections.abc import Collection, Sequence

from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from jaxseg.errors import DataError
from jaxseg.segmenter import Segmenter
from jaxseg.serve import results
from jaxseg.serve.guard import LOOPBACK, Guard
from jaxseg.serve.limits import Limits
from jaxseg.serve.turns import Turns
from jaxseg.serve.uploads import Upload, decode, read_upload

FOLDER = pathlib.Path(__file__).parent
PAGE = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js"}
KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
CLIENT_LEFT = 499  # nobody reads it; nginx has this number for its log


def make_app(
    segmenters: Sequence[Segmenter],
    name: str,
    limits: Limits,
    hosts: Collection[str] | None = LOOPBACK,
) -> ASGIApp:
    """Makes the application.

    Args:
      segmenters: the model, once for each device.
      name: its name, for the page.
      limits: what requests may take.
      hosts: the hosts that a request may name, without port; None for any.
    """
    endpoints = _Endpoints(segmenters, name, limits)
    app = Starlette(
        routes=[
            *(Route(path, _file_endpoint(file)) for path, file in PAGE.items()),
            Route("/model", endpoints.model),
            Route("/segment", endpoints.segment, methods=["POST"]),
        ],
        exception_handlers={
            HTTPException: _refused,
            DataError: _unreadable,
            ClientDisconnect: _left,
            Exception: _failed,
        },
    )
    return Guard(app, hosts)


class _Endpoints:
    def __init__(self, segmenters: Sequence[Segmenter], name: str, limits: Limits):
        self._classes = results.describe_classes(segmenters[0])
        self._name, self._limits = name, limits
        self._turns = Turns(limits.requests, segmenters)

    async def model(self, request: Request) -> Response:
        return JSONResponse(
            {
                "name": self._name,
                "classes": self._classes,
                "most_bytes": self._limits.upload_bytes,
                "most_pixels": self._limits.pixels,
            }
        )

    async def segment(self, request: Request) -> Response:
        kind = _wanted_kind(request)
        with self._turns.admitted():
            upload = await read_upload(request, self._limits)
            async with self._turns.turn() as segmenter:
                if await request.is_disconnected():
                    raise ClientDisconnect
                # In a thread, so that the server answers others meanwhile.
                return await to_thread.run_sync(self._answer, segmenter, upload, kind)

    def _answer(self, segmenter: Segmenter, upload: Upload, kind: str) -> Response:
        image = decode(upload, self._limits)
        if kind == "json":
            facts = results.facts_json(segmenter, image, self._limits)
            return Response(facts, media_type="application/json")
        draw = results.overlay_png if kind == "overlay" else results.class_map_png
        return Response(draw(segmenter, image), media_type="image/png")


def _wanted_kind(request: Request) -> str:
    """Returns what the answer shall be: "json", "classes" or "overlay"."""
    if "overlay" in request.query_params:
        return "overlay"
    for accepted in request.headers.get("accept", "*/*").split(","):
        kind = accepted.partition(";")[0].strip().lower()
        if kind in ("application/json", "application/*", "*/*"):
            return "json"
        if kind in ("image/png", "image/*"):
            return "classes"
    raise HTTPException(406, "answers are application/json or image/png")


def _file_endpoint(name: str):
    content = (FOLDER / name).read_bytes()

    async def endpoint(request: Request) -> Response:
        kind = KINDS[name.rpartition(".")[2]]
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    return endpoint


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _unreadable(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400)


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the server failed; its terminal shows why"}, 500)
