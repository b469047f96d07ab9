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

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

os.environ["BAPS_SERVING"] = "protected"

from fastapi import FastAPI
from monailabel.app import app as _host
from monailabel.interfaces.exception import MONAILabelException
from monailabel.utils.async_tasks.utils import stop_background_task

from baps.errors import BapsError
from web.errors import said
from web.guard import Guard
from web.images import add_image, save_label
from web.inference import cancel, progress, run_infer
from web.pacs import configure_ohif, forward_to_pacs
from web.training import next_sample, start_all_training, start_training

app: FastAPI = _host


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
_replace("/infer/{model}", "POST", run_infer)
_replace("/activelearning/{strategy}", "POST", next_sample)
_replace("/datastore/label", "PUT", save_label)
_replace("/datastore/image", "PUT", add_image)
_replace("/datastore/", "PUT", add_image)
_replace("/ohif/app-config.js", "GET", configure_ohif)
_replace("/progress/", "GET", progress)
_replace("/progress/{job}", "DELETE", cancel)
_replace("/train/{model}", "POST", start_training)
_replace("/train/", "POST", start_all_training)
for method in ("GET", "POST"):
    _replace("/proxy/dicom/{path:path}", method, forward_to_pacs)
app.user_middleware.clear()  # The host's only middleware lets every origin in, with credentials.
app.add_middleware(Guard)
for kind in (BapsError, MONAILabelException):
    app.add_exception_handler(kind, said)
