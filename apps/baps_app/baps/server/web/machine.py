"""Describe the machine and the model for the overview."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from baps.blackbox.device import usable_devices
from baps.errors import BapsError

if TYPE_CHECKING:
    from baps.server.app import BapsApp


@dataclass(frozen=True)
class Server:
    """The machine and the model.

    Attributes:
        model: Name of the black box, or "" while it is loading.
        weights: First characters of its hash, or "".
        device: Devices that it runs on, or the address of its server.
        organ_model: Name of the organ model, or "" if no request has needed it yet.
        volume_model: Name of the 3D model, "" while it is loading or away, or None if the site has none.
        memory_used: Used memory in bytes.
        memory_total: All memory in bytes.
        disk_free: Free bytes of the disk of the adapters.
        disk_total: All bytes of that disk.
    """

    model: str
    weights: str
    device: str
    organ_model: str
    volume_model: str | None
    memory_used: int
    memory_total: int
    disk_free: int
    disk_total: int


def describe_server(app: BapsApp) -> Server:
    """Describe the machine and the model.

    Args:
        app: The app.

    Returns:
        The description.
    """
    capabilities, memory = app.capabilities, psutil.virtual_memory()
    existing = next(place for place in (app.site.adapters, *app.site.adapters.parents) if place.exists())
    disk = _disk(existing)
    try:
        device = f"server {app.site.remote}" if app.site.remote else ", ".join(usable_devices(app.site.device))
    except BapsError as error:
        device = str(error)
    return Server(
        capabilities.name if capabilities else "",
        capabilities.weights_sha256[:12] if capabilities else "",
        device,
        app.organ_model_name,
        app.volume_model_name if app.site.volume_black_box else None,
        memory.total - memory.available,
        memory.total,
        disk[0],
        disk[1],
    )


def _disk(folder: Path) -> tuple[int, int]:
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        usage = shutil.disk_usage(tempfile.gettempdir())
    return usage.free, usage.total
