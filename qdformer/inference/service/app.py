"""The page and the JSON API over a `JobQueue`."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.concurrency import run_in_threadpool
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import FileResponse
from pydantic import BaseModel

from qdformer.inference.service.jobs import Job, JobQueue, LimitError, QueueFullError, State
from qdformer.utils.errors import InputError

PAGE = Path(__file__).with_name("page.html")
SCRIPT = Path(__file__).with_name("page.js")
POLICY = "default-src 'self'; media-src 'self' blob:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_SAME_SITE = ("GET", "HEAD", "OPTIONS")
_CHALLENGE = {"WWW-Authenticate": 'Basic realm="QDFormer"'}


class ResultFile(StrEnum):
    """The files of a finished job."""

    OVERLAY = "overlay.mp4"
    RESULT = "result.json"
    CAPTIONS = "sounding.vtt"
    TIMELINE = "timeline.png"
    MASKS = "masks.zip"


class JobView(BaseModel):
    """A job as clients see it."""

    id: str
    name: str
    state: State
    ahead: int
    """Jobs that are to be worked on before."""
    done: int
    """Seconds that are segmented."""
    seconds: int | None
    """Length of the video, null if unknown."""
    error: str
    files: list[ResultFile]


class ServiceView(BaseModel):
    """What the service accepts and offers."""

    classes: list[str]
    examples: list[str]
    max_bytes: int
    max_seconds: int
    keep_seconds: float


class Problem(BaseModel):
    """Why a request was refused, in one line."""

    detail: str


JobId = Annotated[str, PathParameter(pattern="^[0-9a-f]{32}$")]
FileName = Annotated[str, Query(min_length=1, max_length=200, description="the name of the file, to be shown")]
_ERRORS: dict[int, dict[str, Any]] = {
    status: {"model": Problem, "description": description}
    for status, description in {
        400: "the body is not a video that can be read",
        404: "there is no such job, or it was removed",
        409: "the job has not ended successfully",
        413: "the video exceeds a limit",
        429: "too many videos wait",
    }.items()
}
_VIDEO_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _ERRORS[status] for status in statuses}


def make_app(
    queue: JobQueue,
    classes: tuple[str, ...],
    examples: Mapping[str, Path],
    hosts: tuple[str, ...] = LOCAL_HOSTS,
    api_key: str = "",
) -> FastAPI:
    """The application; the queue runs while it does.

    Args:
        queue: a queue that has not been started.
        classes: names of the classes of the model.
        examples: videos by the name that is shown.
        hosts: names under which the service is reached; requests to another name are refused.
        api_key: if it is not empty, requests without it are refused. A program sends it as `Authorization: Bearer
            KEY`; a browser asks its user for it, as the password of any user name.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with queue:
            yield

    app = FastAPI(
        title="QDFormer", description="Segment the sounding objects of a video.", version="1", lifespan=lifespan,
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        """Refuse requests without the key, or by which another site's page would change something.

        The page is forbidden to load anything from other sites.
        """
        if api_key and not _has_key(request.headers.get("authorization", ""), api_key):
            text = '{"detail":"expected the key of this service"}'
            return Response(text, 401, headers=_CHALLENGE, media_type="application/json")
        origin = request.headers.get("origin")
        if request.method not in _SAME_SITE and origin and urlsplit(origin).netloc != request.headers.get("host"):
            return Response('{"detail":"requests from another site are refused"}', 403, media_type="application/json")
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE, media_type="text/html")

    @app.get("/page.js", include_in_schema=False)
    async def script() -> FileResponse:
        return FileResponse(SCRIPT, media_type="text/javascript")

    @app.get("/api/service")
    async def service() -> ServiceView:
        """What the service accepts and offers."""
        limits = queue.limits
        return ServiceView(
            classes=list(classes),
            examples=list(examples),
            max_bytes=limits.max_bytes,
            max_seconds=limits.max_seconds,
            keep_seconds=limits.keep_seconds,
        )

    @app.post("/api/jobs", status_code=202, responses=_errors(400, 413, 429), openapi_extra=_VIDEO_BODY)
    async def upload(request: Request, name: FileName) -> JobView:
        """Queue the video in the body of the request, of any format that FFmpeg reads."""
        limit, declared = queue.limits.max_bytes, request.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > limit:
            raise HTTPException(413, f"{name}: {declared} bytes; at most {limit}")
        with _refusals(), queue.new_folder() as folder:
            size = 0
            with open(folder / "upload", "wb") as file:
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > limit:
                        raise LimitError(f"{name}: more than {limit} bytes, the limit of this service")
                    await run_in_threadpool(file.write, chunk)
            return _view(queue, await run_in_threadpool(queue.add, folder, name))

    @app.post("/api/examples/{number}", status_code=202, responses=_errors(404, 429))
    def example(number: Annotated[int, PathParameter(ge=0, le=1000)]) -> JobView:
        """Queue an example; the numbers are the places in the service's list."""
        if number >= len(examples):
            raise HTTPException(404, f"there are {len(examples)} examples")
        name, path = list(examples.items())[number]
        with _refusals(), queue.new_folder() as folder:
            (folder / "upload").write_bytes(path.read_bytes())
            return _view(queue, queue.add(folder, name))

    @app.get("/api/jobs/{job_id}", responses=_errors(404))
    def progress(job_id: JobId) -> JobView:
        """The state of a job."""
        return _view(queue, _find(queue, job_id))

    @app.delete("/api/jobs/{job_id}", status_code=204, responses=_errors(404))
    def remove(job_id: JobId) -> None:
        """Remove a job and its files; one that is being worked on is stopped."""
        if not queue.remove(job_id):
            raise HTTPException(404, "no such job")

    @app.get("/api/jobs/{job_id}/{file}", responses=_errors(404, 409), response_class=FileResponse)
    def download(job_id: JobId, file: ResultFile) -> FileResponse:
        """A file of a finished job."""
        job = _find(queue, job_id)
        if job.state is not State.DONE:
            raise HTTPException(409, f"the job is {job.state}; expected {State.DONE}")
        return FileResponse(job.results / file.value)

    return app


def _has_key(authorization: str, api_key: str) -> bool:
    """Whether a header has the key, as a Bearer token or as the password of the scheme Basic."""
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(given.strip().encode(), api_key.encode())


def _find(queue: JobQueue, job_id: str) -> Job:
    job = queue.find(job_id)
    if job is None:
        raise HTTPException(404, "no such job")
    return job


def _view(queue: JobQueue, job: Job) -> JobView:
    files = list(ResultFile) if job.state is State.DONE else []
    return JobView(
        id=job.id,
        name=job.name,
        state=job.state,
        ahead=queue.position(job) if job.state is State.WAITING else 0,
        done=job.done,
        seconds=job.seconds,
        error=job.error,
        files=files,
    )


@contextmanager
def _refusals() -> Iterator[None]:
    """Turns the errors of a queue into HTTP errors."""
    try:
        yield
    except InputError as error:
        status = 413 if isinstance(error, LimitError) else 429 if isinstance(error, QueueFullError) else 400
        raise HTTPException(status, str(error)) from None
