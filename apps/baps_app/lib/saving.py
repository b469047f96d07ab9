"""Saving a label: checked against its image first, and the one that it replaces is kept."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from baps.errors import BapsError, InputError, NotFoundError
from baps.formats import read_labels, read_volume
from lib.label_info import covered_slices, read_label_info


def save_label(
    datastore: Datastore,
    history: Path | None,
    labels: Mapping[str, int],
    image_id: str,
    path: Path,
    tag: str,
    info: dict[str, Any],
) -> str:
    """Save a label into the datastore, and with it who made it, whether a person confirmed it, and what it covers.

    Args:
        datastore: of the server.
        history: folder that earlier labels are copied to, or None where the datastore keeps its own.
        labels: of the site.
        image_id: which image.
        path: the uploaded file.
        tag: ``final``, or another word. What nobody has confirmed is never final: it is kept as ``original``, so that
            it replaces no label and Next Sample goes on offering the image.
        info: what the viewer says of it, see ``LabelInfo``.

    Returns:
        The label's id.

    Raises:
        NotFoundError: if there is no such image.
        InputError: if the file cannot be read, is empty, or does not lie where the image does.
    """
    image = datastore.get_image_uri(image_id) if image_id else ""
    if not image:
        raise NotFoundError(f"There is no image {image_id!r} in the datastore; the label was not saved.")
    said = read_label_info({**info, "covers": None})  # worked out below, whatever is said
    if tag == DefaultLabelTag.FINAL.value and not said.confirmed:
        tag = DefaultLabelTag.ORIGINAL.value
    voxels = read_labels(path, read_volume(Path(image)))
    if not voxels.any():
        raise InputError("The label is empty: no voxel is marked. Segment the organ, then submit. Nothing was saved.")
    if said.slices and max(said.slices) >= voxels.shape[2]:
        raise InputError(f"The label has slices 0 to {voxels.shape[2] - 1}, not {max(said.slices)}. Nothing was saved.")
    info = {
        **info,
        "author": said.author or str(info.get("client_id") or ""),
        "confirmed": said.confirmed,
        "covers": covered_slices(said, voxels, labels),
    }
    try:
        if history is not None:
            _keep_earlier(datastore, history, image_id, tag)
        saved: str = datastore.save_label(image_id, str(path), tag, info)
    except OSError as error:
        raise BapsError(
            f"The label could not be saved ({error.strerror}). The earlier one, if any, is as it was. Make room on the "
            "server's disk and submit again."
        ) from error
    return saved


def _keep_earlier(datastore: Datastore, history: Path, image_id: str, tag: str) -> None:
    """Copy the label that is about to be replaced, and what is known of it."""
    earlier = datastore.get_label_uri(image_id, tag)
    if not earlier or not Path(earlier).is_file():
        return
    folder = history / tag / image_id
    folder.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%dT%H%M%S") + f"-{time.time_ns() % 1_000_000_000:09d}"
    kept = folder / f"{stamp}-{Path(earlier).name}"
    shutil.copy2(earlier, kept)
    Path(f"{kept}.json").write_text(json.dumps(datastore.get_label_info(image_id, tag)))
