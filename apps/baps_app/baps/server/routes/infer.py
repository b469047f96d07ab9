"""Routes that run inference, and that list and cancel long requests."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

from anyio import from_thread
from fastapi import BackgroundTasks, File, Form, Request, UploadFile
from fastapi.responses import FileResponse, Response
from monailabel.endpoints import infer as monailabel_infer
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.interfaces.utils.app import app_instance

from baps.blackbox import model_seconds
from baps.errors import InputError, NotFoundError
from baps.inference.requests.click import PACKED
from baps.inference.requests.form import CONFIRMS, DO_NOT_SAVE
from baps.io import STRAIGHTENED_NOTE, read_nifti_notes
from baps.server.infer.base import format_adapters
from baps.server.jobs import CLIENT, Client
from baps.server.request_context import context_of
from baps.server.request_names import checked_name, json_object
from baps.server.routes.datastore import file_name, image_file, received, suffix_of
from baps.server.routes.sessions import find_session
from baps.site.roles import Role

NOTES = "X-BAPS-Notes"
"""Header with the notes of a response, percent-encoded. OHIF gets the voxels without the JSON of the reply."""

_RESERVED = ("image", "image_id", "model", "session", "save_label", "label_tag")
"""Fields that ``params`` may not set: which file is read, and where the result is written."""


def run_infer(
    request: Request,
    background_tasks: BackgroundTasks,
    model: str,
    image: str = "",
    session_id: str = "",
    params: str = Form("{}"),
    file: UploadFile = File(None),
    label: UploadFile = File(None),
    output: monailabel_infer.ResultType | None = None,
) -> Response | dict[str, Any]:
    """Segment an image with a model.

    The header Server-Timing gives the time of the model and of the whole request, in milliseconds.
    """
    begun = time.perf_counter()
    instance = app_instance()
    if model not in instance._infers:
        raise NotFoundError(f"There is no model {model!r}. Known ones: {', '.join(instance._infers)}.")
    fields = json_object(params, "params")
    if fields.get("save_label"):
        raise InputError("A mask is saved as a label of the site. Give its name as save_as, instead of save_label.")
    wanted = {k: v for k, v in fields.items() if k not in _RESERVED}
    if name := context_of(request).name:
        wanted["client_id"] = name  # The author is the user who has signed in, whatever the client sends.
    wanted[CONFIRMS] = context_of(request).confirms
    if output == monailabel_infer.ResultType.dicom_seg:
        raise InputError("Masks are sent as NRRD. To store one as DICOM SEG, give a label of the site as save_as.")
    for uploaded in (file, label):
        if uploaded is not None:
            suffix_of(uploaded)
            checked_name(file_name(uploaded), "file")  # The name becomes that of a temporary file.
    if not (image or session_id or file):
        raise InputError("The request names no image. Give image, session_id or a file.")
    if instance._infers[model].type == InferType.SCRIBBLES:
        wanted.pop("label", None)  # The label is the uploaded labelmap. A request must not name another file.
    if image and not session_id:  # With a session, 3D Slicer names the volume as it does itself.
        check_grid(image_file(image), output)
    wanted |= {"model": model, "image": image}
    if session_id:
        session = find_session(request, session_id)
        wanted |= {"image": session.image, "session": session.to_json()}
    # OHIF requests raw voxels, 79 MB for a CT, nearly all of them zero. They are sent with Content-Encoding gzip.
    is_raw = output == monailabel_infer.ResultType.image and wanted.get("result_compress") is False
    wanted[PACKED] = is_raw and "gzip" in request.headers.get("accept-encoding", "")
    wanted[CLIENT] = Client(lambda: from_thread.run(request.is_disconnected), context_of(request).name)
    if _is_save(wanted.get("save_as")):  # In the audit file also if the request fails after the label was saved.
        context_of(request).further_actions.append("save a label")
    with ExitStack() as uploads:
        if file is not None and not session_id:
            wanted["image"] = str(uploads.enter_context(received(file)))
        if label is not None and "label" not in wanted:
            wanted["label"] = str(uploads.enter_context(received(label)))
        with model_seconds() as seconds_in_model:
            result = instance.infer(wanted)
    reply = result["params"]
    context_of(request).adapter = format_adapters(reply)
    response: Response | dict[str, Any] = monailabel_infer.send_response(
        instance.datastore(), result, output, background_tasks
    )
    if isinstance(response, FileResponse) and _is_gzip(Path(response.path)):
        response.headers["Content-Encoding"] = "gzip"
    if isinstance(response, Response):
        total = time.perf_counter() - begun
        response.headers["Server-Timing"] = (
            f"model;dur={1000 * sum(seconds_in_model):.1f}, total;dur={1000 * total:.1f}"
        )
        response.headers[NOTES] = notes_header(reply["notes"])
    return response


def notes_header(notes: Iterable[str]) -> str:
    """Encode notes for the header ``X-BAPS-Notes``. They are cut, because proxies limit headers to some kilobytes.

    Args:
        notes: The notes, one sentence each.

    Returns:
        The value of the header.
    """
    return quote(" ".join(notes)[:400])


def _is_save(save_as: object) -> bool:
    """Return whether the option ``save_as`` is set. 3D Slicer sends the list of choices if the user chose none."""
    chosen = save_as[0] if isinstance(save_as, list) and save_as else save_as
    return bool(chosen) and str(chosen) not in ("None", DO_NOT_SAVE)


def check_grid(file: Path, output: monailabel_infer.ResultType | None) -> None:
    """Check that the voxels of a mask have the grid that OHIF shows. OHIF ignores the geometry of a mask.

    Args:
        file: NIfTI file of the image.
        output: Format of the response. OHIF requests ``image``.

    Raises:
        InputError: If OHIF would show the mask elsewhere, because the slices of the image were straightened.
    """
    if output == monailabel_infer.ResultType.image and STRAIGHTENED_NOTE in read_nifti_notes(file):
        raise InputError(
            "The slices of this series are shifted against each other (a tilted gantry). OHIF ignores the shift and "
            "would show the mask beside the organ. Open the series in 3D Slicer."
        )


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def progress(request: Request) -> list[dict[str, Any]]:
    """List the long requests that are running: those of the user, or all of them for a trainer."""
    jobs: list[dict[str, Any]] = app_instance().jobs.to_dicts(_owner(request))
    return jobs


def cancel(request: Request, job: str) -> dict[str, str]:
    """Cancel a long request; its client gets the mask so far.

    Raises:
        NotFoundError: If there is no such request, or it is another user's and the user is not a trainer.
    """
    app_instance().jobs.cancel(job, _owner(request))
    return {"cancelled": job}


def _owner(request: Request) -> str | None:
    """Return the user whose jobs the client may list and cancel, or None for all users."""
    principal = context_of(request).principal
    return None if principal is not None and principal.role.may(Role.TRAINER) else context_of(request).name
