"""The page to start trainings, and to watch and stop the one that runs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any

import anyio
from anyio import to_thread
from fastapi import HTTPException, Request
from fastapi.responses import Response, StreamingResponse

from baps.errors import BapsError, InputError
from baps.server.routes.train import start_training
from baps.server.routes.without_paths import stop_training
from baps.server.web.layout import POLICY, redirect, render, render_part, require_own_page
from baps.server.web.plots import CurvePlot, plot_curves
from baps.server.web.state import WebState, state_of
from baps.server.web.train_options import Option, list_options
from baps.server.web.trainings import Training, last_task, read_trainings, trainer_stats
from baps.utils.redaction import shorten_paths

_STREAM_SECONDS = 60.0
"""Time after which a stream of events ends. The browser opens the next one, which authenticates the user again."""

_EVENT_SECONDS = 1.0
"""Time between two looks at a training."""

TITLES = {"baps": "Adapt clicks", "organs": "Adapt the organ model", "volume": "Adapt the 3D model"}
"""What each trainer does."""


def train_page(request: Request, organ: str = "") -> Response:
    """Show the last trainings, and the forms to start one."""
    return _page(request, chosen={"label": organ} if organ else None)


async def start(request: Request) -> Response:
    """Start a training with the options of the form."""
    require_own_page(request)
    form = {name: value for name, value in (await request.form()).items() if isinstance(value, str)}
    model = form.pop("model", "")
    try:
        await to_thread.run_sync(partial(start_training, model, dict(form)))
    except HTTPException as refusal:
        return await to_thread.run_sync(partial(_page, request, refusal.status_code, str(refusal.detail), model, form))
    except BapsError as error:
        code = 400 if isinstance(error, InputError) else 503
        sentence = shorten_paths(str(error))
        return await to_thread.run_sync(partial(_page, request, code, sentence, model, form))
    return redirect(request, "/web/train")


def stop(request: Request) -> Response:
    """Stop the running training. It can go on later."""
    require_own_page(request)
    stop_training()
    return redirect(request, "/web/train")


async def events(request: Request) -> Response:
    """Send the progress of the training as server-sent events whenever it changes."""
    seen = tuple(request.headers.get("last-event-id", "").split("-"))

    async def stream(sent: tuple[str, ...]) -> AsyncIterator[str]:
        yield "retry: 1000\n\n"
        end = time.monotonic() + _STREAM_SECONDS
        while time.monotonic() < end:
            parts = await to_thread.run_sync(_live_parts, request)
            hashes = tuple(hashlib.sha256(html.encode()).hexdigest()[:12] for html in parts.values())
            for number, (name, html) in enumerate(parts.items()):
                if hashes[number] not in sent:
                    yield format_event(name, html, "-".join(hashes))
            sent = hashes
            await anyio.sleep(_EVENT_SECONDS)

    headers = {"Content-Security-Policy": POLICY, "X-Accel-Buffering": "no"}
    return StreamingResponse(stream(seen), headers=headers, media_type="text/event-stream")


ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/web/train", train_page),
    ("GET", "/web/train/events", events),
    ("POST", "/web/train", start),
    ("POST", "/web/train/stop", stop),
]


def format_event(name: str, html: str, event_id: str) -> str:
    """Format a server-sent event.

    Args:
        name: Name of the event.
        html: Its data.
        event_id: Id, which the browser sends back when it opens the next stream.

    Returns:
        The lines of the event.
    """
    data = "\n".join(f"data: {line}" for line in html.splitlines() if line.strip())
    return f"event: {name}\nid: {event_id}\n{data}\n\n"


def _trainings(state: WebState) -> list[tuple[Training, CurvePlot | None]]:
    trainings = read_trainings(trainer_stats(state.app), last_task())
    return [(training, plot_curves(training.curves)) for training in trainings]


def _live_parts(request: Request) -> dict[str, str]:
    """Render the parts of the page that change while it is open, by the names of their events."""
    trainings = _trainings(state_of(request))
    return {
        "progress": render_part(request, "web/train-progress.html", trainings=trainings),
        "controls": render_part(request, "web/train-controls.html", trainings=trainings),
    }


def _page(
    request: Request,
    status: int = 200,
    sentence: str = "",
    model: str = "",
    chosen: Mapping[str, str] | None = None,
) -> Response:
    state = state_of(request)
    counts = state.counts.get().value
    patients = {organ.organ: organ.patients for organ in counts.organs} if counts else {}
    forms: list[tuple[str, str, list[Option]]] = []
    for name, trainer in state.app._trainers.items():
        values = chosen if chosen and model in ("", name) else {}
        forms.append((name, TITLES.get(name, name), list_options(name, trainer.config(), values, patients)))
    return render(
        request,
        "web/train.html",
        status,
        trainings=_trainings(state),
        forms=forms,
        sentence=sentence,
        failed_form=model,
        few=[organ for organ, count in patients.items() if count == 1],
    )
