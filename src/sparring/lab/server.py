"""The server: what the page asks for, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from importlib import resources
from typing import Annotated, Any
from urllib.parse import quote, unquote

from fastapi import FastAPI, Header, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image
from pydantic import StringConstraints

from sparring.inspection.pixels import pixels
from sparring.lab.bench import Lab
from sparring.lab.guard import Guard, TooLarge
from sparring.lab.jobs import follow
from sparring.lab.pictures import MAX_BYTES, Refused, png
from sparring.lab.requests import Look, Order, command
from sparring.lab.results import Show, Sort

KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
TOGETHER = 4  # attacks that one page watches side by side
Token = Annotated[str, Path(min_length=1, max_length=64)]
Job = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Name = Annotated[str, Path(min_length=1, max_length=200)]


def create_app(lab: Lab, *, hosts: Iterable[str] = (), anywhere: bool = False) -> FastAPI:
    """The lab as an ASGI app, which closes the lab when it ends.

    hosts: names beside the loopback's under which it may be reached; anywhere: also any address in figures.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(lab.close)

    app = FastAPI(title="sparring lab", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, hosts=hosts, anywhere=anywhere, max_body=MAX_BYTES)
    _complaints(app)
    _page(app)
    _attacks(app, lab)
    _results(app, lab)
    return app


def _complaints(app: FastAPI) -> None:
    """Every error is {"error": one line}."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"error": str(error)}, error.status)

    @app.exception_handler(TooLarge)
    async def too_large(request: Request, error: TooLarge) -> JSONResponse:
        return JSONResponse({"error": f"the file has more than {MAX_BYTES >> 20} MB"}, 413)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        return JSONResponse({"error": f"{place}: {first['msg']}"}, 422)


def _page(app: FastAPI) -> None:
    files = {
        file.name: file.read_bytes()
        for file in resources.files("sparring.lab").joinpath("static").iterdir()
        if file.name.rpartition(".")[2] in KINDS
    }

    def static(name: str) -> Response:
        if name not in files:
            raise Refused("there is no such page", 404)
        return Response(files[name], media_type=f"{KINDS[name.rpartition('.')[2]]}; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return static("index.html")

    @app.get("/static/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        return static(name)

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return static("icon.svg")


def _attacks(app: FastAPI, lab: Lab) -> None:
    @app.get("/api/state")
    def state() -> dict[str, Any]:
        return lab.state()

    @app.post("/api/pictures", status_code=201)
    async def upload(request: Request, x_name: Annotated[str, Header(max_length=400)] = "") -> dict[str, str]:
        content = await request.body()
        token = await asyncio.to_thread(lab.pictures.add, content, unquote(x_name))
        return {"token": token, "name": lab.pictures.get(token).name}

    @app.get("/api/pictures/{token}/thumbnail.png")
    def thumbnail(token: Token) -> Response:
        return _png(lab.pictures.thumbnail(token))

    @app.get("/api/pictures/{token}/file")
    def original(token: Token) -> Response:
        picture = lab.pictures.get(token)
        return _download(picture.path.read_bytes(), picture.name, f"image/{picture.kind.lower()}")

    @app.post("/api/looks")
    def look(asked: Look) -> dict[str, Any]:
        return lab.look(asked)

    @app.post("/api/jobs", status_code=201)
    def order(order: Order) -> dict[str, Any]:
        job = lab.order(order)
        line = command(order, job.network, lab.pictures.get(order.picture).name)
        return {"job": job.id, "ahead": lab.jobs.ahead(job), "command": line}

    @app.get("/api/jobs/{name}")
    def job(name: Token) -> dict[str, Any]:
        found = lab.jobs.get(name)
        return {"state": found.state, "events": len(found.events), "ahead": lab.jobs.ahead(found), **lab.jobs.counts()}

    @app.get("/api/events")
    async def events(
        job: Annotated[list[Job], Query(min_length=1, max_length=TOGETHER)],
        last_event_id: Annotated[str, Header(pattern=r"^(\d{1,6}(-\d{1,6}){0,3})?$")] = "",
    ) -> StreamingResponse:
        jobs = [lab.jobs.get(name) for name in job]
        seen = [int(part) for part in last_event_id.split("-")] if last_event_id else [0] * len(jobs)
        if len(seen) != len(jobs):
            raise Refused(f"Last-Event-ID {last_event_id}: expected a number for each of {len(jobs)} attacks")
        return StreamingResponse(follow(jobs, seen), media_type="text/event-stream")

    @app.delete("/api/jobs/{name}", status_code=204)
    def cancel(name: Token) -> Response:
        lab.jobs.cancel(lab.jobs.get(name))
        return Response(status_code=204)

    @app.get("/api/jobs/{name}/adversarial.png")
    def adversarial(name: Token, at: float = 0.0) -> Response:
        found = lab.jobs.get(name)
        if not found.answers:
            raise Refused("this attack has not ended yet", 409)
        nearest = min(found.answers, key=lambda eps: abs(eps - at))
        stem = lab.pictures.get(found.order.picture).name.rpartition(".")[0] or "picture"
        content = png(Image.fromarray(pixels(found.answers[nearest].rounded)))
        return _download(content, f"{stem}-adversarial.png", "image/png")


def _results(app: FastAPI, lab: Lab) -> None:
    @app.get("/api/runs/{name}")
    def run(name: Name) -> dict[str, Any]:
        return lab.run(name).page()

    @app.get("/api/runs/{name}/samples")
    def samples(
        name: Name,
        show: Show = "fooled",
        label: int | None = None,
        into: int | None = None,
        sort: Sort = "index",
        down: bool = False,
        first: Annotated[int, Query(ge=0, le=1 << 40)] = 0,
    ) -> dict[str, Any]:
        return lab.run(name).samples(show, label, into, sort, down, first)

    @app.get("/api/runs/{name}/samples/{index}")
    def sample(name: Name, index: int) -> dict[str, Any]:
        return lab.run(name).sample(index)

    @app.get("/api/runs/{name}/samples/{index}/{which}.png")
    def picture(name: Name, index: int, which: str) -> Response:
        if which not in ("original", "adversarial", "change"):
            raise Refused("expected original, adversarial or change", 404)
        return _png(lab.run(name).picture(index, which))  # type: ignore[arg-type]


def _png(content: bytes) -> Response:
    return Response(content, media_type="image/png", headers={"cache-control": "private, max-age=3600"})


def _download(content: bytes, name: str, kind: str) -> Response:
    return Response(
        content,
        media_type=kind,
        headers={"content-disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}"},
    )
