"""Trainings, one at a time, and the next sample to label."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from fastapi import Body, HTTPException, Request
from monailabel.endpoints import activelearning as host_activelearning
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import processes, tasks

from baps.errors import InputError, NotFoundError
from baps.server.request_context import LOCAL_MACHINE, asked
from baps.server.request_names import printable
from baps.server.routes.without_paths import task_for_viewer


def start_training(model: str, params: dict[str, Any] | None = Body(None)) -> Any:
    """Start a training, if there is something to train on and none is running."""
    instance = app_instance()
    trainer = instance._trainers.get(model)
    if trainer is None:
        raise NotFoundError(f"There is no trainer {model!r}. Known ones: {', '.join(instance._trainers)}.")
    asked = {k: v for k, v in (params or {}).items() if k not in instance._trainers}
    own = (params or {}).get(model) or {}
    if not isinstance(own, dict):
        raise InputError(f"The options of {model} must be a JSON object, not {type(own).__name__}.")
    asked.update(own)
    if _training():
        raise HTTPException(429, "A training is running already. Wait until it has finished, or stop it.")
    # Only what the trainer knows goes on: the host would put other keys into the environment of a process.
    wanted = trainer.read_options(asked)
    trainer.prepare(wanted, instance.datastore())
    result, detail = AsyncTask.run("train", request={"model": model}, params=wanted)
    if result is None:
        raise HTTPException(429, detail)
    return task_for_viewer(result)


def _training() -> bool:
    """Whether a training runs, or was asked for within the last minute and is about to."""
    if processes("train"):
        return True
    soon = datetime.now() - timedelta(minutes=1)
    return any(
        task["status"] == "SUBMITTED" and datetime.strptime(task["start_ts"], "%Y-%m-%d %H:%M:%S") > soon
        for task in tasks("train")
    )


def start_all_training(params: dict[str, Any] | None = Body(None)) -> dict[str, Any]:
    """OHIF's Update Model, which names no trainer: ``baps``, whose clicks OHIF's users see at once.

    One training runs at a time. ``organs`` is started by its name.
    """
    return {"baps": {"result": start_training("baps", params), "detail": None}}


def next_sample(request: Request, strategy: str, params: dict[str, Any] | None = Body(None)) -> dict[str, Any]:
    """The host's, in a thread: a strategy may look at volumes first.

    Its ``path`` is for a viewer on this machine, and is given where nobody else is answered.

    Raises:
        NotFoundError: if there is no such strategy.
    """
    known = app_instance()._strategies
    if strategy not in known:
        raise NotFoundError(f"There is no strategy {strategy!r}. Known ones: {', '.join(known)}.")
    wanted = {key: value for key, value in (params or {}).items() if key != "strategy"}
    # The host keeps it beside the image.
    wanted["client_id"] = asked(request).name or printable(wanted.get("client_id"))
    sample: dict[str, Any] = host_activelearning.sample(strategy, wanted)
    asked(request).image = str(sample.get("id") or "")
    if asked(request).asker is not LOCAL_MACHINE:
        sample.pop("path", None)
    return sample
