"""Saving a label, or what a model shows: checked against its image first, read back, and nobody's work is lost.

Whoever saves holds the datastore's lock from reading the earlier label to storing the new one; other threads, other
processes and the command line wait. What is kept of earlier labels: ``baps.label_history``, or the PACS.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from numpy.typing import NDArray

from baps.collected import notes
from baps.errors import InputError, NotFoundError, StorageError
from baps.formats import read_label_map, read_volume, write_label_map
from baps.label_history import Version
from baps.label_map import LabelMap
from baps.volume import Volume
from lib.label_info import MOST_LETTERS, LabelInfo, covered_slices, label_values, name_values, read_label_info
from lib.others_work import keep_others
from lib.pacs import PacsDatastore
from lib.read_back import check_version
from lib.studies import StudiesDatastore
from lib.whole_list import WholeList


def save_label(
    datastore: Datastore,
    labels: Mapping[str, int],
    image_id: str,
    path: Path,
    tag: str,
    info: dict[str, Any],
    whole: bool = False,
) -> str:
    """Save a label into the datastore, and with it who made it, whether a person confirmed it, and what it covers.

    Args:
        datastore: of the server.
        labels: of the site.
        image_id: which image.
        path: the uploaded file.
        tag: ``final``, or another word: ``draft``, which no training takes and Next Sample does not heed. What nobody
            has confirmed is never final: it is kept as ``original``, so that it replaces no label and Next Sample goes
            on offering the image.
        info: what the viewer says of it, see ``LabelInfo``.
        whole: see ``covered_slices``.

    Returns:
        The label's id.

    Raises:
        NotFoundError: if there is no such image.
        InputError: if the file cannot be read, is empty, does not lie where the image does, or marks a value that has
            no name.
        StorageError: if the disk is full.
        BapsError: if what was stored is not what was sent; or if the PACS does not take it, the sentence says whether
            it is kept.
    """
    image = datastore.get_image_uri(image_id) if image_id else ""
    if not image:
        raise NotFoundError(f"There is no image {image_id!r} in the datastore; the label was not saved.")
    said = read_label_info({**info, "covers": None, "authors": {}})  # Worked out below, whatever is said.
    if tag == DefaultLabelTag.FINAL.value and not said.confirmed:
        tag = DefaultLabelTag.ORIGINAL.value
    volume, source = read_volume(Path(image)), source_of(datastore, image_id)
    found = read_label_map(path, volume, source)
    marked = set(found.values())
    if not marked:
        raise InputError("The label is empty: no voxel is marked. Segment the organ, then submit. Nothing was saved.")
    if said.slices and max(said.slices) >= found.shape[2]:
        raise InputError(f"The label has slices 0 to {found.shape[2] - 1}, not {max(said.slices)}. Nothing was saved.")
    author = (said.author or str(info.get("client_id") or ""))[:MOST_LETTERS]
    values = name_values(said, found, labels)
    covers = covered_slices(said, found, values, whole)
    info = {
        **info,
        # Said by name and value, whatever the site's own values will be one day.
        "label_info": _segments(values, info),
        "author": author,
        "authors": {name: author for name, value in values.items() if value in marked},
        "confirmed": said.confirmed,
        "covers": covers,
    }
    with _saving(datastore), tempfile.TemporaryDirectory() as folder:
        earlier = _earlier(datastore, image_id, tag, volume) if said.confirmed else None
        if earlier and earlier[1].confirmed:
            kept = keep_others(found, values, said, author, *earlier, labels)
            notes.give(*kept.notes)
            if kept.organs:
                found, values = kept.label_map, kept.values
                path = write_label_map(Path(folder) / "label", found, volume)
                info["label_info"] = _segments(values, info)
                for name in kept.organs:
                    info["authors"][name] = earlier[1].author_of(name)
                    covers.pop(name, None)  # A label that does not say what it covers, covers all.
                    if name in (covered := earlier[1].covers or {}):
                        covers[name] = sorted(covered[name])
        _store(datastore, image_id, path, tag, info, check_version(found, values, volume, source))
    return image_id


def save_shown(
    datastore: Datastore,
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

    In a folder of studies, voxels of other organs are left out of the mask.

    Args:
        datastore, labels, image_id: as in ``save_label``.
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
    known = datastore.has_image(image_id) if isinstance(datastore, WholeList) else image_id in datastore.list_images()
    if not known:
        raise NotFoundError("The image is not in the datastore, so its mask cannot be saved there. Open one that is.")
    if organ not in labels:
        raise InputError(f"A mask is saved under the name of a label: {', '.join(labels)}. {organ!r} is none of them.")
    if not isinstance(datastore, (StudiesDatastore, PacsDatastore)):
        raise InputError("Masks are saved to a folder of studies or a PACS only. Submit the label from the viewer.")
    with _saving(datastore):
        found, info = datastore.label_to_change(image_id, organ, image)
        present = found.values()
        if present and not info.confirmed:
            raise InputError(
                "The label of this image was confirmed by nobody. Check and submit it before you add to it."
            )
        values = label_values(info, labels, found.names) if present else {}
        taken = {0, *values.values(), *present}
        value = values.setdefault(organ, max(taken) + 1 if labels[organ] in taken else labels[organ])
        before, where = found.mask(value), sorted(slices)
        others = found.without(value)
        wanted = before.copy()
        wanted[:, :, where] = mask[:, :, where]
        after = wanted & (before | ~others.marked())
        if not after.any():
            raise InputError(f"The mask of {organ} is empty, or lies in other organs. Nothing was saved.")
        left_out = int(wanted.sum() - after.sum())
        but = f", but for {left_out} voxels that are marked as other organs" if left_out else ""
        if np.array_equal(before, after):
            return f"It was saved as {organ} before{but}."
        changed = others.with_masks({value: after}, {value: name for name, value in values.items()})
        covers = {name: sorted(found) for name, found in (info.covers or {}).items()}
        if organ in covers or not before.any():  # A label that does not say what it covers, covers all.
            covers[organ] = sorted({*covers.get(organ, []), *where})
        said = {
            "label_info": _segments(values, {}),
            "author": author[:MOST_LETTERS],
            "authors": {**{name: info.author_of(name) for name in values}, organ: author[:MOST_LETTERS]},
            "model": model,
            "confirmed": True,
            "covers": covers,
        }
        with tempfile.TemporaryDirectory() as folder:
            path = write_label_map(Path(folder) / "label", changed, image)
            check = check_version(changed, values, image, source_of(datastore, image_id))
            _store(datastore, image_id, path, DefaultLabelTag.FINAL.value, said, check)
        return f"Saved as {organ}{but}."


@contextmanager
def _saving(datastore: Datastore) -> Iterator[None]:
    """Nobody else saves meanwhile; a disk that is full is said in a sentence.

    The host's own datastores have no such lock.
    """
    ours = isinstance(datastore, (StudiesDatastore, PacsDatastore))
    try:
        with datastore.saving if ours else nullcontext():
            yield
    except OSError as error:
        raise StorageError(
            f"The label could not be saved ({error.strerror}). The earlier one, if any, is as it was. Make room on the "
            "server's disk and submit again."
        ) from error


def source_of(datastore: Datastore, image_id: str) -> Path | None:
    """Return the DICOM series or file of an image of a folder of studies; none of other images."""
    return datastore.source(image_id) if isinstance(datastore, StudiesDatastore) else None


def _store(
    datastore: Datastore, image_id: str, path: Path, tag: str, info: dict[str, Any], check: Callable[[Version], None]
) -> None:
    """Store a label, in a folder of studies after the check. The PACS store reads back what it sends by itself."""
    if isinstance(datastore, StudiesDatastore):
        datastore.save_label(image_id, str(path), tag, info, check)
    else:
        datastore.save_label(image_id, str(path), tag, info)


def _earlier(datastore: Datastore, image_id: str, tag: str, image: Volume) -> tuple[LabelMap, LabelInfo] | None:
    """The label map that is about to be replaced and what is known of it; a PACS keeps each organ for itself."""
    if isinstance(datastore, PacsDatastore) and tag == DefaultLabelTag.FINAL.value:
        return None
    file = datastore.get_label_uri(image_id, tag)
    if not file or not Path(file).is_file():
        return None
    try:
        found = read_label_map(Path(file), image, source_of(datastore, image_id))
        return found, read_label_info(datastore.get_label_info(image_id, tag) or {})
    except InputError:  # Laid there by hand, say. It is kept as it is.
        return None


def _segments(values: Mapping[str, int], info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Names and values, with what else was said of a segment."""
    said = {(one["name"], one["idx"]): one for one in info.get("label_info") or []}
    return [{**said.get((name, value), {}), "name": name, "idx": value} for name, value in values.items()]
