"""The server for real use: MONAI Label's own application with its faults mended.

``python -m monailabel.main start_server --app apps/baps_app --uvicorn_app serving:app ...`` (what ``make serve`` runs).

* Inference, Next Sample, label upload and training run in threads, so that /info/ and other users are answered
  meanwhile. The tasks are thread-safe; the black box locks itself.
* What a request names must exist: no path is built from a request, and ``params`` cannot override image or model.
* A caller's fault is a 4xx with a sentence, not a 500.
* Only what the viewers ask for is served: nothing deletes, replaces an image or weights, or unpacks an archive. Other
  origins get no leave, and the proxy reaches DICOMweb alone.
* The training process ends with the server.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

os.environ["BAPS_SERVING"] = "protected"

from anyio import from_thread
from fastapi import BackgroundTasks, Body, Depends, FastAPI, File, Form, HTTPException, Request, UploadFile
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from monailabel.app import app as _host
from monailabel.endpoints import activelearning as host_activelearning
from monailabel.endpoints import infer as host_infer
from monailabel.endpoints import ohif as host_ohif
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import processes, stop_background_task, tasks
from starlette.types import ASGIApp, Receive, Scope, Send

from baps.blackbox import model_seconds
from baps.click import PACKED
from baps.collected import notes
from baps.errors import BapsError, InputError, NotFoundError
from baps.formats import IMAGE_SUFFIXES, read_volume
from baps.jobs import asked_by

logger = logging.getLogger(__name__)

app: FastAPI = _host
_fetching = threading.Lock()

NOTES = "X-BAPS-Notes"
"""A header of an answer to a click: what was left out of it or saved, percent-encoded. OHIF gets nothing but voxels."""

_NAMED = ("image", "id", "label", "tag", "session_id")
_NOT_FOR_REQUESTS = ("image", "image_id", "model", "session", "save_label", "label_tag")
"""What ``params`` may not say: which file is read, and where the answer is written."""

_FROM_PACS = ("content-type", "content-length", "content-encoding")
"""Headers of the PACS that a viewer needs."""

_DICOMWEB = {
    "GET": re.compile(r"((wado|qido|stow)/)?(studies|series|instances)(/[\w.,:-]+)*/?"),
    "POST": re.compile(r"((wado|stow)/)?studies(/[\d.]+)?/?"),
}
"""What is passed on to the PACS: to search, to fetch, and to store. PACSs have more there, which deletes."""

_MOST_BYTES = 512 << 20
"""That a viewer may store in the PACS at once."""

_ALLOWED = re.compile(
    r"(GET|HEAD) /($|info/?$|openapi\.json$|docs$|favicon\.ico$|static/|ohif|datastore/|train/|session/|progress/)"
    r"|(GET|HEAD) /(proxy/dicom/|auth/)"
    r"|POST /(infer/[^/]+$|activelearning/|train/|proxy/dicom/)"
    r"|PUT /(datastore/(image|label)?$|session/)"
    r"|DELETE /(train/|session/|progress/)"
)
"""What the viewers ask for. The host has more, which deletes, reads any path, or replaces what is served."""


def checked_name(value: str, what: str) -> str:
    """A name from a request that may become part of a path.

    Raises:
        InputError: if it has a separator or could mean another folder.
    """
    size = len(value.encode(errors="replace"))
    if size > 200 or set(value) & set("/\\") or not value.isprintable() or value.strip(". ") == "":
        raise InputError(f"The {what} {value!r} is no name: up to 200 printing bytes, no slashes, not dots alone.")
    return value


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is no valid JSON: {error}. Send an object such as {{}}.") from None
    if not isinstance(value, dict):
        raise InputError(f"{what} must be a JSON object, not {type(value).__name__}.")
    return value


def _image_file(image: str) -> Path:
    """The file of an image of the datastore; fetched from the PACS first, by one thread at a time.

    Raises:
        NotFoundError: if there is no such image.
    """
    datastore = app_instance().datastore()
    if image not in datastore.list_images():
        raise NotFoundError(f"There is no image {image!r} in the datastore. Choose one that Next Sample offers.")
    with _fetching:  # A second thread would find the series half written.
        return Path(datastore.get_image_uri(image))


def _run_infer(
    request: Request,
    background_tasks: BackgroundTasks,
    model: str,
    image: str = "",
    session_id: str = "",
    params: str = Form("{}"),
    file: UploadFile = File(None),
    label: UploadFile = File(None),
    output: host_infer.ResultType | None = None,
) -> Response | dict[str, Any] | None:
    """Segment; a synchronous route, so it runs in a thread of the pool.

    The reply's header Server-Timing says, in milliseconds, what the model took and what all of it took.
    """
    begun = time.perf_counter()
    instance = app_instance()
    if model not in instance._infers:
        raise NotFoundError(f"There is no model {model!r}. Known ones: {', '.join(instance._infers)}.")
    given = _object(params, "params")
    if given.get("save_label"):
        raise InputError("A mask is saved under a name: give save_as, one of the site's labels, instead of save_label.")
    wanted = {k: v for k, v in given.items() if k not in _NOT_FOR_REQUESTS}
    if output == host_infer.ResultType.dicom_seg:
        raise InputError("Masks are given as NRRD. To store one as DICOM SEG, give save_as, a label of the site.")
    for uploaded in (file, label):
        if uploaded is not None:
            _suffix(uploaded)
    if not (image or session_id or file):
        raise InputError("The request names no image. Give image, session_id or a file.")
    if instance._infers[model].type == InferType.SCRIBBLES:
        wanted.pop("label", None)  # There it is the uploaded labelmap; a request must not name another file.
    if image and not session_id:  # With a session Slicer names an image of its own.
        _image_file(image)
    if session_id and not (instance.sessions() and instance.sessions().get_session(session_id)):
        raise NotFoundError(f"There is no session {session_id!r}, or it has expired. Open the image again.")
    # OHIF wants raw voxels, 79 MB of a CT, nearly all zeros: they travel packed.
    raw = output == host_infer.ResultType.image and wanted.get("result_compress") is False
    wanted[PACKED] = raw and "gzip" in request.headers.get("accept-encoding", "")
    gone = asked_by(lambda: from_thread.run(request.is_disconnected))
    try:
        with model_seconds() as spent, notes.collecting() as said, gone:
            answer: Response | dict[str, Any] | None = host_infer.run_inference(
                background_tasks, model, image, session_id, json.dumps(wanted), file, label, output
            )
    except Exception:
        for task in background_tasks.tasks:  # They remove what was uploaded, but only after an answer.
            task.func(*task.args, **task.kwargs)
        raise
    if isinstance(answer, FileResponse) and _is_gzip(Path(answer.path)):
        answer.headers["Content-Encoding"] = "gzip"
    if isinstance(answer, Response):
        whole = time.perf_counter() - begun
        answer.headers["Server-Timing"] = f"model;dur={1000 * sum(spent):.1f}, total;dur={1000 * whole:.1f}"
        answer.headers[NOTES] = quote(" ".join(said)[:400])  # Proxies take headers of some kilobytes.
    return answer


def _progress() -> list[dict[str, Any]]:
    """The long answers that are being made now; nothing of their images."""
    jobs: list[dict[str, Any]] = app_instance().jobs.records()
    return jobs


def _cancel(job: str) -> dict[str, str]:
    """Have a long answer end: who waits for it gets what was found so far."""
    app_instance().jobs.cancel(job)
    return {"cancelled": job}


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _save_label(
    image: str, tag: str = "final", params: str = Form("{}"), label: UploadFile = File(...)
) -> dict[str, Any]:
    """Save a label, checked first; nothing is changed if it cannot be used."""
    info = _object(params, "params")
    _image_file(image)
    with _received(label) as path:
        saved = app_instance().save_label(image, path, tag or "final", info)
    return {"image": image, "label": saved}


def _add_image(image: str = "", params: str = Form("{}"), file: UploadFile = File(...)) -> dict[str, Any]:
    """Add an image to a local datastore; one that is there is never replaced."""
    info = _object(params, "params")
    datastore = app_instance().datastore()
    if hasattr(datastore, "forward"):
        raise InputError("The images of this server are those of its PACS. Send yours to the PACS.")
    with _received(file) as path:
        suffix = _suffix(file)
        name = checked_name(image or Path(file.filename or "").name.removesuffix(suffix), "image")
        if name in datastore.list_images():
            raise InputError(f"There is an image {name!r} already, and its labels; give the new one another name.")
        read_volume(path)
        added = datastore.add_image(name, str(path), info)
    return {"image": added}


def _suffix(file: UploadFile) -> str:
    name = (file.filename or "").lower()
    suffix = next((kind for kind in IMAGE_SUFFIXES if name.endswith(kind)), "")
    if not suffix:
        raise InputError(f"The file must be of one of the kinds {', '.join(IMAGE_SUFFIXES)}. Nothing was saved.")
    return suffix


@contextmanager
def _received(file: UploadFile) -> Iterator[Path]:
    """An uploaded file on disk, under a name of ours."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"upload{_suffix(file)}"
        with path.open("wb") as target:
            shutil.copyfileobj(file.file, target)
        yield path


def _start_training(model: str, params: dict[str, Any] | None = Body(None)) -> Any:
    """Start a training, if there is something to train on and none is running."""
    instance = app_instance()
    trainer = instance._trainers.get(model)
    if trainer is None:
        raise NotFoundError(f"There is no trainer {model!r}. Known ones: {', '.join(instance._trainers)}.")
    asked = {k: v for k, v in (params or {}).items() if k not in instance._trainers}
    asked.update((params or {}).get(model) or {})
    if _training():
        raise HTTPException(429, "A training is running already. Wait until it has finished, or stop it.")
    # Only what the trainer knows goes on: the host would put other keys into the environment of a process.
    wanted = trainer.read_options(asked)
    trainer.prepare(wanted, instance.datastore())
    result, detail = AsyncTask.run("train", request={"model": model}, params=wanted)
    if result is None:
        raise HTTPException(429, detail)
    return result


def _training() -> bool:
    """Whether a training runs, or was asked for within the last minute and is about to."""
    if processes("train"):
        return True
    soon = datetime.now() - timedelta(minutes=1)
    return any(
        task["status"] == "SUBMITTED" and datetime.strptime(task["start_ts"], "%Y-%m-%d %H:%M:%S") > soon
        for task in tasks("train")
    )


def _start_all_training(params: dict[str, Any] | None = Body(None)) -> dict[str, Any]:
    """OHIF's Update Model, which names no trainer: ``baps``, whose clicks OHIF's users see at once.

    One training runs at a time. ``organs`` is started by its name.
    """
    return {"baps": {"result": _start_training("baps", params), "detail": None}}


def _next_sample(strategy: str, params: dict[str, Any] | None = Body(None)) -> dict[str, Any]:
    """The host's, in a thread: a strategy may look at volumes first.

    Raises:
        NotFoundError: if there is no such strategy.
    """
    known = app_instance()._strategies
    if strategy not in known:
        raise NotFoundError(f"There is no strategy {strategy!r}. Known ones: {', '.join(known)}.")
    wanted = {key: value for key, value in (params or {}).items() if key != "strategy"}
    sample: dict[str, Any] = host_activelearning.sample(strategy, wanted)
    return sample


def _configure_ohif() -> Response:
    """OHIF's configuration, and an extension of ours that mends its export."""
    theirs = Path(host_ohif.get_ohif("app-config.js").path).read_text()
    ours = Path(__file__).with_name("ohif-extension.js").read_text()
    return Response(f"{theirs}\n{ours}", media_type="text/javascript")


async def _body(request: Request) -> bytes:
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > _MOST_BYTES:
            raise InputError(f"More than {_MOST_BYTES >> 20} MB cannot be sent through this server.")
    return bytes(content)


def _forward_to_pacs(request: Request, path: str, body: bytes = Depends(_body)) -> Response:
    """OHIF's way to the PACS; the host's own holds up everybody while the PACS works, and drops the query."""
    forward = getattr(app_instance().datastore(), "forward", None)
    if forward is None:
        raise NotFoundError("This server serves a folder of studies; there is no PACS behind it.")
    if not _DICOMWEB[request.method].fullmatch(path):
        raise InputError("That is no request that OHIF makes of a PACS; it is not passed on.")
    kind, _, rest = path.partition("/")
    kind, rest = (kind, rest) if kind in ("wado", "qido", "stow") else ("", path)
    kind = "wado" if rest.endswith("metadata") else kind  # OHIF asks for metadata where it searches.
    query = f"?{request.url.query}" if request.url.query else ""
    headers = {name: value for name in ("accept", "content-type") if (value := request.headers.get(name))}
    found = forward(request.method, kind, rest + query, headers, body)
    passed = {name: value for name in _FROM_PACS if (value := found.headers.get(name))}
    return StreamingResponse(found.raw.stream(1 << 16, decode_content=False), found.status_code, passed)


class Guard:
    """Refuses, before anything else sees it, what no viewer asks for."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(scope)):
            await refusal(scope, receive, send)
            return
        await self.app(scope, receive, send)

    @staticmethod
    def _refusal(scope: Scope) -> JSONResponse | None:
        method, path = scope["method"], scope["path"]
        raw = scope.get("raw_path", path.encode()).decode("latin-1")
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        origin = headers.get("origin", "")
        if origin and origin.split("://")[-1] != headers.get("host", ""):
            return JSONResponse({"detail": "Requests from pages of other origins are refused."}, 403)
        decoded = unquote(unquote(raw))
        if ".." in decoded.split("/") or "\\" in decoded or "%2f" in raw.lower():
            return JSONResponse({"detail": "The path of the request leads outside what is served."}, 400)
        if method != "OPTIONS" and not _ALLOWED.match(f"{method} {path}"):
            return JSONResponse({"detail": f"{method} {path} is not served here; no viewer asks for it."}, 403)
        if path.startswith("/session") and query.get("uncompress", "").lower() not in ("", "false", "0"):
            return JSONResponse({"detail": "Archives are not unpacked; send one image file."}, 400)
        try:
            for name in _NAMED:
                if query.get(name):
                    checked_name(query[name], name)
        except InputError as error:
            return JSONResponse({"detail": str(error)}, 400)
        return None


async def _said(_: Request, error: Exception) -> JSONResponse:
    """A sentence and the right status code for an error that was foreseen."""
    if isinstance(error, (NotFoundError, ImageNotFoundException, LabelNotFoundException)):
        code = 404
    elif isinstance(error, (InputError, MONAILabelException)):
        code = 400
    else:
        code = 503
    return JSONResponse({"detail": getattr(error, "msg", None) or str(error)}, code)


@asynccontextmanager
async def _lifespan(application: FastAPI) -> AsyncIterator[None]:
    async with _host_lifespan(application):
        yield
        stop_background_task("train")


def _replace(path: str, method: str, endpoint: Any) -> None:
    """Put a route of ours before the host's."""
    app.add_api_route(path, endpoint, methods=[method], response_model=None)
    app.router.routes.insert(0, app.router.routes.pop())


_host_lifespan = app.router.lifespan_context
app.router.lifespan_context = _lifespan
_replace("/infer/{model}", "POST", _run_infer)
_replace("/activelearning/{strategy}", "POST", _next_sample)
_replace("/datastore/label", "PUT", _save_label)
_replace("/datastore/image", "PUT", _add_image)
_replace("/datastore/", "PUT", _add_image)
_replace("/ohif/app-config.js", "GET", _configure_ohif)
_replace("/progress/", "GET", _progress)
_replace("/progress/{job}", "DELETE", _cancel)
_replace("/train/{model}", "POST", _start_training)
_replace("/train/", "POST", _start_all_training)
for method in ("GET", "POST"):
    _replace("/proxy/dicom/{path:path}", method, _forward_to_pacs)
app.user_middleware.clear()  # The host's only middleware lets every origin in, with credentials.
app.add_middleware(Guard)
for kind in (BapsError, MONAILabelException):
    app.add_exception_handler(kind, _said)
