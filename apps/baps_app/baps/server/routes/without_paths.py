"""Remove paths of this machine from responses; viewers do not need them.

The path of the next sample is an exception: 3D Slicer opens it if it runs on the same machine. See
``baps.server.routes.train.next_sample``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from monailabel.endpoints import train as monailabel_train

from baps.utils.redaction import redact_identifiers, shorten_paths_in_json


def without_folders(route: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a route so that its response has file names instead of paths.

    Args:
        route: The route.

    Returns:
        The wrapped route.
    """

    @wraps(route)
    def wrapped(**parameters: Any) -> Any:
        response = route(**parameters)
        return shorten_paths_in_json(response) if isinstance(response, (dict, list)) else response

    return wrapped


def task_for_viewer(task: dict[str, Any] | None) -> dict[str, Any] | None:
    """Remove the lines of a training's log that contain paths.

    Args:
        task: The training as MONAI Label describes it, or None.

    Returns:
        The training. It has at least one line, because 3D Slicer shows the last one.
    """
    if task is None or "details" not in task:
        return task
    lines = [redact_identifiers(line) for line in task["details"] if "/" not in line]
    return {**task, "details": lines or [""]}


def training_status(all: bool = False, check_if_running: bool = False) -> Any:  # noqa: A002 (its name in the address)
    """Return the last training, all trainings, or the running one."""
    status = monailabel_train.status(all, check_if_running)
    return [task_for_viewer(task) for task in status] if all else task_for_viewer(status)


def stop_training() -> Any:
    """Stop the running training."""
    return task_for_viewer(monailabel_train.stop())
