"""Routes of nnInteractive's protocol, below ``/nninteractive`` and ``/nninteractive/<label>``.

A client claims a session, sends an image and prompts, and gets the part of the mask that changed. The label, if there
is one, names the organ whose adapter is used. The last mask of a session with a label becomes a draft, see
``KeptDrafts``.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
from anyio import from_thread
from fastapi import Request
from fastapi.responses import Response
from monailabel.interfaces.utils.app import app_instance
from numpy.typing import NDArray
from pydantic import BaseModel

from baps.errors import BapsError, InputError, NotFoundError
from baps.imaging.volume import Volume
from baps.imaging.windowing import choose_window
from baps.inference.requests.form import read_form
from baps.inference.volume_model_predictor import ModelPredictor
from baps.inference.volume_predictor import SlicePredictor, VolumeAnswer, VolumeImage, VolumePredictor
from baps.prompts.volume_prompts import Triple, VolumePrompt, VolumeRegion
from baps.server.infer.base import format_adapter
from baps.server.jobs import Client
from baps.server.middleware.bodies import BODY
from baps.server.nninteractive import messages
from baps.server.nninteractive.kept_drafts import KeptDrafts, may_save_labels
from baps.server.nninteractive.sessions import Limits, Session, Sessions
from baps.server.nninteractive.volume import Mask, Predict, SegmentedVolume, bytes_needed
from baps.server.request_context import context_of
from baps.server.request_names import json_object
from baps.site.audit import AuditFile
from baps.site.settings import Settings
from baps.utils.packed_arrays import (
    Header,
    check_installed,
    read_array,
    read_header,
    shape_text,
    write_array,
)
from baps.utils.throttle import inference_lock

if TYPE_CHECKING:
    from baps.server.app import BapsApp

PREFIX = "/nninteractive"

_SECONDS = 40.0
"""Maximum time of a prediction: clients wait a minute for it, and it may have to wait for others."""

_CLOSE_SECONDS = 30.0
"""Maximum time to wait at the end of the server for a draft that is being kept."""

_META, _LEASE = "X-Meta", "X-Lease-Token"

_USAGE = "Send what nninteractive-client 2 sends."

Form = TypeVar("Form", bound=BaseModel)


class NnInteractive:
    """The protocol with its sessions.

    Args:
        settings: Settings of the site.
        audit: Audit file, which gets a line for each draft.
    """

    def __init__(self, settings: Settings, audit: AuditFile) -> None:
        each = max(1, settings.nninteractive_sessions // 2) if settings.requires_login else None
        self._labels = tuple(settings.labels)
        self._drafts = KeptDrafts(settings, audit)
        self.sessions = Sessions(
            Limits(
                settings.nninteractive_sessions,
                each or settings.nninteractive_sessions,
                settings.nninteractive_mb << 20,
                settings.nninteractive_idle_seconds,
                settings.nninteractive_liveness_seconds,
            ),
            on_end=self._drafts.keep,
        )

    def routes(self) -> list[tuple[str, str, Callable[..., Any]]]:
        """Return the routes: methods, path and endpoint."""
        endpoints: list[tuple[str, str, Callable[..., Any]]] = [
            ("GET", "healthz", self.is_healthy),
            ("GET", "capabilities", self.describe),
            ("GET", "lease_status", self.lease_status),
            ("POST", "claim", self.claim),
            ("POST", "heartbeat", self.heartbeat),
            ("POST", "release", self.release),
            ("POST", "set_image", self.set_image),
            ("POST", "set_target_buffer", self.set_target_buffer),
            ("POST", "set_do_autozoom", self.set_do_autozoom),
            ("POST", "add_point_interaction", self.add_point),
            ("POST", "add_bbox_interaction", self.add_box),
            ("POST", "add_scribble_interaction", self.add_scribble),
            ("POST", "add_lasso_interaction", self.add_lasso),
            ("POST", "add_initial_seg_interaction", self.start_from_mask),
            ("POST", "predict", self.predict),
            ("POST", "undo", self.undo),
            ("POST", "reset_interactions", self.reset),
        ]
        return [
            (method, f"{PREFIX}{place}/{name}", endpoint)
            for place in ("", "/{label}")
            for method, name, endpoint in endpoints
        ]

    def close(self) -> None:
        """End all sessions and keep their masks, because the server stops."""
        self.sessions.close(_CLOSE_SECONDS)

    def is_healthy(self, request: Request) -> dict[str, bool]:
        """Say that nnInteractive's clients can connect."""
        self._label(request)
        check_installed()
        return {"ok": True}

    def describe(self, request: Request) -> dict[str, Any]:
        """Describe the model to nnInteractive's clients."""
        self._label(request)
        return messages.capabilities_reply(volume_predictor(app_instance()).capabilities)

    def claim(self, request: Request) -> dict[str, Any]:
        """Begin a session of an nnInteractive client."""
        label = self._label(request)
        check_installed()
        limits, context = self.sessions.limits, context_of(request)
        return {
            "lease_token": self.sessions.claim(context.name, label, may_save_labels(context.principal)),
            "idle_timeout_seconds": limits.idle_seconds,
            "liveness_timeout_seconds": limits.liveness_seconds,
            "max_sessions": limits.sessions,
        }

    def heartbeat(self, request: Request) -> dict[str, float]:
        """Note that an nnInteractive client is still there."""
        with self._using(request, active=False) as session:
            return {"remaining_seconds": self.sessions.remaining_seconds(session)}

    def lease_status(self, request: Request) -> dict[str, float]:
        """Return how long the session of an nnInteractive client lasts."""
        with self._using(request, active=False) as session:
            remaining = self.sessions.remaining_seconds(session)
        return {"remaining_seconds": remaining, "idle_timeout_seconds": self.sessions.limits.idle_seconds}

    def release(self, request: Request) -> dict[str, bool]:
        """End the session of an nnInteractive client."""
        token = request.headers.get(_LEASE, "")
        self.sessions.release(token, context_of(request).name, self._label(request))
        return {"released": True}

    def set_image(self, request: Request) -> dict[str, Any]:
        """Set the image of an nnInteractive client's session."""
        form = read_form(messages.ImageForm, _meta(request), _USAGE)
        file = _body(request)
        with self._using(request) as session:
            header = read_header(file, "The image")
            _check_image(header)
            with session.lock:
                self._drafts.keep(session)
                session.volume = None  # Its memory is free for the new image.
                try:
                    self.sessions.reserve(session, bytes_needed(header.shape, header.nbytes))
                    assert file is not None
                    session.volume = SegmentedVolume(_image(read_array(file, header, "The image"), form))
                finally:
                    if session.volume is None:
                        self.sessions.reserve(session, 0)
        return {"original_image_shape": list(header.shape)}

    def set_target_buffer(self, request: Request) -> dict[str, Any]:
        """Set the shape and type of the mask of an nnInteractive client."""
        form = read_form(messages.BufferForm, _json(request), _USAGE).checked()
        with self._using(request) as session, session.lock:
            if session.volume is not None and form[0] != session.volume.image.shape:
                raise InputError(
                    f"The mask of the viewer has {shape_text(form[0])} voxels and the image "
                    f"{shape_text(session.volume.image.shape)}. They must be equal."
                )
            session.buffer = form
            if session.volume is not None:
                session.volume.forget_sent()
        return {}

    def set_do_autozoom(self, request: Request) -> dict[str, Any]:
        """Keep the flag autozoom of an nnInteractive client, which changes nothing: adapters choose the zoom."""
        form = read_form(messages.AutozoomForm, _json(request), _USAGE)
        with self._using(request) as session, session.lock:
            session.autozoom = form.do_autozoom
        return {}

    def add_point(self, request: Request) -> Response:
        """Add a click of an nnInteractive client, and segment."""
        form = read_form(messages.PointForm, _json(request), _USAGE)
        return self._add(request, form.prompt, form.run_prediction)

    def add_box(self, request: Request) -> Response:
        """Add a box of an nnInteractive client, and segment."""
        form = read_form(messages.BoxForm, _json(request), _USAGE)
        return self._add(request, form.prompt, form.run_prediction)

    def add_scribble(self, request: Request) -> Response:
        """Add a scribble of an nnInteractive client, and segment."""
        return self._add_painted(request, "The scribble", lasso=False)

    def add_lasso(self, request: Request) -> Response:
        """Add a lasso of an nnInteractive client, and segment."""
        return self._add_painted(request, "The lasso", lasso=True)

    def start_from_mask(self, request: Request) -> Response:
        """Replace the mask of an nnInteractive client's session by one to be corrected."""
        form = read_form(messages.MaskForm, _meta(request), _USAGE)
        with self._using(request) as session, session.lock:
            volume = _volume_of(session)
            mask = _read_painted(request, "The mask", volume.image.shape)
            volume.start_from(mask != 0)
            return _reply(session, volume, form.run_prediction)

    def predict(self, request: Request) -> Response:
        """Segment from the prompts of an nnInteractive client that have no answer yet."""
        with self._using(request) as session, session.lock:
            volume = _volume_of(session)
            return _reply(session, volume, volume.predict(_predict(request, session)) is not None)

    def undo(self, request: Request) -> Response:
        """Undo the last prompt of an nnInteractive client."""
        with self._using(request) as session, session.lock:
            volume = _volume_of(session)
            return _reply(session, volume, volume.undo())

    def reset(self, request: Request) -> dict[str, Any]:
        """Remove the prompts and the mask of an nnInteractive client."""
        with self._using(request) as session, session.lock:
            if session.volume is not None:
                session.volume.reset()
        return {}

    def _add_painted(self, request: Request, what: str, lasso: bool) -> Response:
        form = read_form(messages.PaintedForm, _meta(request), _USAGE)

        def prompt(shape: Triple) -> VolumeRegion:
            low, part = form.part(shape)
            return VolumeRegion.of(_read_painted(request, what, part), low, lasso, form.include_interaction)

        return self._add(request, prompt, form.run_prediction)

    def _add(self, request: Request, prompt: Callable[[Triple], VolumePrompt], run: bool) -> Response:
        with self._using(request) as session, session.lock:
            volume = _volume_of(session)
            answer = volume.add(prompt(volume.image.shape), _predict(request, session) if run else None)
            return _reply(session, volume, answer is not None)

    @contextmanager
    def _using(self, request: Request, active: bool = True) -> Iterator[Session]:
        token, label = request.headers.get(_LEASE, ""), self._label(request)
        with self.sessions.using(token, context_of(request).name, label, active) as session:
            yield session

    def _label(self, request: Request) -> str:
        """Return the label that the address names, or "".

        Raises:
            NotFoundError: If it is not one of the site.
        """
        label: str = request.path_params.get("label", "")
        if label and label not in self._labels:
            raise NotFoundError(
                f"There is no label {label[:200]!r}. Use the address {PREFIX}, or {PREFIX}/ and one of these: "
                f"{', '.join(self._labels)}."
            )
        return label


def volume_predictor(app: BapsApp) -> VolumePredictor:
    """Return what answers prompts in 3D at this site.

    Args:
        app: The app.

    Raises:
        BapsError: If the black box cannot be loaded.
    """
    return ModelPredictor(app.volumes()) if app.site.volume_black_box else SlicePredictor(app.segmenter())


def _predict(request: Request, session: Session) -> Predict:
    """Make the function that predicts for a request. A running training waits meanwhile."""
    app: BapsApp = app_instance()
    client = Client(lambda: from_thread.run(request.is_disconnected), context_of(request).name)

    def predict(image: VolumeImage, prompts: tuple[VolumePrompt, ...], new: int, mask: Mask) -> VolumeAnswer:
        predictor = volume_predictor(app)
        with inference_lock(app.store.inference_lock_file), app.jobs.running("nninteractive", client) as job:

            def should_continue() -> bool:
                return job.seconds < _SECONDS and not job.cancelled

            answer = predictor.predict(image, prompts, new, mask, session.label, should_continue, job.report)
        context_of(request).adapter = format_adapter(answer.adapter) or ""
        if not answer.complete and client.is_gone():
            raise BapsError("The viewer has closed the connection; its last prompt was not added.")
        return answer

    return predict


def _reply(session: Session, volume: SegmentedVolume, ran: bool) -> Response:
    """Return the part of the mask that the client must replace; nothing if the mask did not change."""
    meta: dict[str, Any] = {"ran_prediction": ran, "bbox": None}
    content = b""
    if ran:
        box, values = volume.changed_part()
        if box is not None:
            part = np.ascontiguousarray(values, dtype=session.buffer[1] if session.buffer else "uint8")
            meta |= {"bbox": box, "dtype": str(part.dtype), "shape": list(part.shape)}
            content = write_array(part)
    headers = {_META: json.dumps(meta, separators=(",", ":"))}
    return Response(content, media_type="application/octet-stream", headers=headers)


def _check_image(header: Header) -> None:
    """Check that a packed array is an image.

    Raises:
        InputError: If it is not.
    """
    is_colour = header.shape[0] == 3 and header.dtype == np.uint8
    if len(header.shape) != 4 or not (header.shape[0] == 1 or is_colour):
        raise InputError(
            f"The image has the shape {shape_text(header.shape)}. Send one channel first (1 x X x Y x Z), or three of "
            "bytes for red, green and blue."
        )


def _image(array: NDArray[Any], form: messages.ImageForm) -> VolumeImage:
    voxels = array[0] if len(array) == 1 else np.ascontiguousarray(np.moveaxis(array, 0, -1))
    spacing = messages.read_spacing(form.image_properties)
    window = choose_window(Volume(voxels, np.eye(4)))
    return VolumeImage(f"nnInteractive {uuid.uuid4().hex}", voxels, window, spacing)


def _volume_of(session: Session) -> SegmentedVolume:
    """Return the image of a session with its prompts.

    Raises:
        InputError: If there is none.
    """
    volume = session.volume
    if volume is None:
        raise InputError("There is no image in this session. Send one (set_image) before prompts.")
    if session.buffer is not None and session.buffer[0] != volume.image.shape:
        raise InputError("The mask of the viewer does not fit the image. Set it again (set_target_buffer).")
    return volume


def _read_painted(request: Request, what: str, shape: Triple) -> NDArray[Any]:
    """Read painted voxels of a known shape.

    Raises:
        InputError: If they have another shape, or are broken.
    """
    file = _body(request)
    header = read_header(file, what)
    if header.shape != shape:
        raise InputError(f"{what} has {shape_text(header.shape)} voxels where {shape_text(shape)} are expected.")
    assert file is not None
    return read_array(file, header, what)


def _body(request: Request) -> BinaryIO | None:
    """Return the file with the body, or None. It is read here, in a thread, not in the event loop."""
    file: BinaryIO | None = request.scope.get(BODY)
    return file


def _json(request: Request) -> dict[str, Any]:
    file = _body(request)
    return json_object(file.read().decode(errors="replace") if file else "", "The body")


def _meta(request: Request) -> dict[str, Any]:
    return json_object(request.headers.get(_META, ""), f"The header {_META}")
