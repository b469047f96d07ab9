"""Routes that start a training and select the next sample. One training runs at a time."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from fastapi import Body, HTTPException, Request
from monailabel.endpoints import activelearning as monailabel_activelearning
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import processes, tasks

from baps.errors import InputError, NotFoundError
from baps.server.request_context import LOCAL_MACHINE, context_of
from baps.server.request_names import printable_name
from baps.server.routes.without_paths import task_for_viewer


def start_training(model: str, params: dict[str, Any] | None = Body(None)) -> Any:
    """Start a training.

    Invalid options and a site without labels are refused. Errors that depend on the volumes are reported by the status
    of the training.

    Raises:
        NotFoundError: If there is no such trainer.
        InputError: If an option is not valid, or there is no label to train on.
        HTTPException: 429 if a training is running.
    """
    instance = app_instance()
    trainer = instance._trainers.get(model)
    if trainer is None:
        raise NotFoundError(f"There is no trainer {model!r}. Known ones: {', '.join(instance._trainers)}.")
    options = {k: v for k, v in (params or {}).items() if k not in instance._trainers}
    of_model = (params or {}).get(model) or {}
    if not isinstance(of_model, dict):
        raise InputError(f"The options of {model} must be a JSON object, not {type(of_model).__name__}.")
    options.update(of_model)
    if _is_training():
        raise HTTPException(429, "A training is running already. Wait until it has finished, or stop it.")
    # Only known options are passed on, because MONAI Label puts others into the environment of a process.
    known_options = trainer.read_options(options)
    trainer.prepare(known_options, instance.datastore())
    result, detail = AsyncTask.run("train", request={"model": model}, params=known_options)
    if result is None:
        raise HTTPException(429, detail)
    return task_for_viewer(result)


def _is_training() -> bool:
    """Return whether a training runs, or was requested within the last minute and is about to start."""
    if processes("train"):
        return True
    soon = datetime.now() - timedelta(minutes=1)
    return any(
        task["status"] == "SUBMITTED" and datetime.strptime(task["start_ts"], "%Y-%m-%d %H:%M:%S") > soon
        for task in tasks("train")
    )


def start_all_training(params: dict[str, Any] | None = Body(None)) -> dict[str, Any]:
    """Start the trainer ``baps``, for OHIF's Update Model, which names no trainer.

    The trainer ``organs`` must be started by its name.
    """
    return {"baps": {"result": start_training("baps", params), "detail": None}}


def next_sample(request: Request, strategy: str, params: dict[str, Any] | None = Body(None)) -> dict[str, Any]:
    """Select the next image to label.

    The response has a ``path``, which 3D Slicer opens, only if the server serves its own machine alone.

    Raises:
        NotFoundError: If there is no such strategy.
    """
    known = app_instance()._strategies
    if strategy not in known:
        raise NotFoundError(f"There is no strategy {strategy!r}. Known ones: {', '.join(known)}.")
    fields = {key: value for key, value in (params or {}).items() if key != "strategy"}
    # MONAI Label stores the client with the image.
    fields["client_id"] = context_of(request).name or printable_name(fields.get("client_id"))
    sample: dict[str, Any] = monailabel_activelearning.sample(strategy, fields)
    context_of(request).image = str(sample.get("id") or "")
    if context_of(request).principal is not LOCAL_MACHINE:
        sample.pop("path", None)
    return sample
