"""Saving a label: checked against its image first, and the one that it replaces is kept."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore

from baps.errors import BapsError, InputError, NotFoundError
from baps.volume import read_labels, read_volume

logger = logging.getLogger(__name__)


def save_label(
    datastore: Datastore, history: Path | None, image_id: str, path: Path, tag: str, info: dict[str, Any]
) -> str:
    """Save a label into the datastore.

    Args:
        datastore: of the server.
        history: folder that earlier labels are copied to, or None where the datastore keeps its own.
        image_id: which image.
        path: the uploaded file.
        tag: ``final``, or another word.
        info: what the viewer says of it; ``label_info`` names its segments.

    Returns:
        The label's id.

    Raises:
        NotFoundError: if there is no such image.
        InputError: if the file cannot be read, is empty, or does not lie where the image does.
    """
    image = datastore.get_image_uri(image_id) if image_id else ""
    if not image:
        raise NotFoundError(f"There is no image {image_id!r} in the datastore; the label was not saved.")
    labels = read_labels(path, read_volume(Path(image)))
    if not labels.any():
        raise InputError("The label is empty: no voxel is marked. Segment the organ, then submit. Nothing was saved.")
    _check_names(info)
    earlier = datastore.get_label_uri(image_id, tag) if history else ""
    kept: Path | None = None
    if earlier and history and Path(earlier).is_file():
        folder = history / tag / image_id
        folder.mkdir(parents=True, exist_ok=True)
        stamp = time.strftime("%Y%m%dT%H%M%S") + f"-{time.time_ns() % 1_000_000_000:09d}"
        kept = folder / f"{stamp}-{Path(earlier).name}"
        shutil.copy2(earlier, kept)
    try:
        saved: str = datastore.save_label(image_id, str(path), tag, info)
    except OSError as error:  # The host writes in place: a full disk would leave half a label.
        if kept:
            shutil.copy2(kept, earlier)
        raise BapsError(f"The label could not be saved ({error}). The earlier one, if any, is as it was.") from error
    return saved


def _check_names(info: dict[str, Any]) -> None:
    said = info.get("label_info", [])
    try:
        names = [str(item["name"]) for item in said]
        values = [int(item["idx"]) for item in said]
    except (TypeError, KeyError, ValueError):
        raise InputError(
            'label_info must be a list such as [{"name": "spleen", "idx": 1}]. Nothing was saved.'
        ) from None
    if len(set(names)) != len(names) or len(set(values)) != len(values):
        raise InputError(f"label_info names a label or a value twice: {said}. Nothing was saved.")
