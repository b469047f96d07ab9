"""Saving a label, or what a model shows: checked against its image first, and the label that is replaced is kept."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from numpy.typing import NDArray

from baps.errors import BapsError, InputError, NotFoundError
from baps.formats import read_labels, read_volume, write_nifti
from baps.volume import Volume
from lib.label_info import MOST_LETTERS, covered_slices, label_values, read_label_info
from lib.pacs import PacsDatastore
from lib.studies import StudiesDatastore


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
    covers = covered_slices(said, voxels, labels)
    if not voxels.any():
        raise InputError("The label is empty: no voxel is marked. Segment the organ, then submit. Nothing was saved.")
    if said.slices and max(said.slices) >= voxels.shape[2]:
        raise InputError(f"The label has slices 0 to {voxels.shape[2] - 1}, not {max(said.slices)}. Nothing was saved.")
    info = {
        **info,
        # Said by name and value, whatever the site's own values will be one day.
        "label_info": info.get("label_info") or [{"name": name, "idx": value} for name, value in labels.items()],
        "author": (said.author or str(info.get("client_id") or ""))[:MOST_LETTERS],
        "confirmed": said.confirmed,
        "covers": covers,
    }
    return _store(datastore, history, image_id, path, tag, info)


def save_shown(
    datastore: Datastore,
    history: Path | None,
    labels: Mapping[str, int],
    image_id: str,
    image: Volume,
    organ: str,
    mask: NDArray[np.bool_],
    slices: Collection[int],
    model: str,
    author: str = "",
) -> str:
    """Save what a model shows and a person chose to keep; the organ's other slices and other organs stay as they are.

    A labelmap holds one label a voxel: in a folder of studies, voxels of other organs are left out of the mask.

    Args:
        datastore, history, labels, image_id: as in ``save_label``.
        image: the volume.
        organ: the label.
        mask: (I, J, K).
        slices: across K, that are replaced by those of the mask.
        model: that made it.
        author: who chose to keep it.

    Returns:
        A sentence for who saved it. Nothing is stored twice.

    Raises:
        NotFoundError: if there is no such image.
        InputError: if the organ is no label of the site, nothing is marked, or the datastore or its earlier label
            cannot be used.
    """
    if image_id not in datastore.list_images():
        raise NotFoundError("The image is not in the datastore, so its mask cannot be saved there. Open one that is.")
    if organ not in labels:
        raise InputError(f"A mask is saved under the name of a label: {', '.join(labels)}. {organ!r} is none of them.")
    if not isinstance(datastore, (StudiesDatastore, PacsDatastore)):
        raise InputError("Masks are saved to a folder of studies or a PACS only. Submit the label from the viewer.")
    voxels, info = datastore.label_to_change(image_id, organ, image)
    if voxels.any() and not info.confirmed:
        raise InputError("The label of this image was confirmed by nobody. Check and submit it before you add to it.")
    values = label_values(info, labels) if voxels.any() else {}
    taken = {0, *values.values(), *np.unique(voxels).tolist()}
    value = values.setdefault(organ, max(taken) + 1 if labels[organ] in taken else labels[organ])
    before, where = voxels == value, sorted(slices)
    wanted = before.copy()
    wanted[:, :, where] = mask[:, :, where]
    after = wanted & ((voxels == 0) | before)
    if not after.any():
        raise InputError(f"The mask of {organ} is empty, or lies in other organs. Nothing was saved.")
    left_out = int(wanted.sum() - after.sum())
    but = f", but for {left_out} voxels that are marked as other organs" if left_out else ""
    if np.array_equal(before, after):
        return f"It was saved as {organ} before{but}."
    voxels = np.where(after, value, np.where(before, 0, voxels))
    kind = np.uint8 if voxels.min() >= 0 and voxels.max() <= 255 else np.int32
    covers = {name: sorted(found) for name, found in (info.covers or {}).items()}
    if organ in covers or not before.any():  # A label that does not say what it covers, covers all.
        covers[organ] = sorted({*covers.get(organ, []), *where})
    said = {
        "label_info": [{"name": name, "idx": number} for name, number in values.items()],
        "author": author[:MOST_LETTERS],
        "model": model,
        "confirmed": True,
        "covers": covers,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "label.nii.gz"
        write_nifti(path, Volume(voxels.astype(kind), image.affine))
        _store(datastore, history, image_id, path, DefaultLabelTag.FINAL.value, said)
    return f"Saved as {organ}{but}."


def _store(
    datastore: Datastore, history: Path | None, image_id: str, path: Path, tag: str, info: dict[str, Any]
) -> str:
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
