"""Answers of routes without the paths of this machine, which no viewer needs.

One is needed: 3D Slicer opens the image of a next sample by its path where it runs on the same machine, see
``baps.server.routes.train.next_sample``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from monailabel.endpoints import train as host_train

from baps.utils.redaction import redact_identifiers, shorten_paths_in_json


def without_folders(route: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a route: its answer has the name of a file in place of each path."""

    @wraps(route)
    def wrapped(**given: Any) -> Any:
        answer = route(**given)
        return shorten_paths_in_json(answer) if isinstance(answer, (dict, list)) else answer

    return wrapped


def task_for_viewer(task: dict[str, Any] | None) -> dict[str, Any] | None:
    """A training without the lines of its log that name files; 3D Slicer shows the last line when it stops one."""
    if task is None or "details" not in task:
        return task
    lines = [redact_identifiers(line) for line in task["details"] if "/" not in line]
    return {**task, "details": lines or [""]}


def training_status(all: bool = False, check_if_running: bool = False) -> Any:  # noqa: A002 (its name in the address)
    """The last training, or all of them, or the one that is running."""
    found = host_train.status(all, check_if_running)
    return [task_for_viewer(task) for task in found] if all else task_for_viewer(found)


def stop_training() -> Any:
    """Stop the training."""
    return task_for_viewer(host_train.stop())
