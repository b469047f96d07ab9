"""Save labels and masks of models: check them against their image, merge them with earlier labels, and read them back.

A label is read, checked and merged with the earlier one while other users may save. If one of them was faster, it is
merged again with the new label. The lock of the label is held only to store it, and excludes other threads, other
processes and the command line. Earlier labels are kept by ``baps.annotations.history``, or by the PACS.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from numpy.typing import NDArray

from baps.annotations.disputes import DisputeResult, NewLabel, SavedLabel, find_disputes, is_same
from baps.annotations.history import OutdatedError, Version, check_tag
from baps.annotations.label_info import (
    MAX_NAME_LENGTH,
    check_segment_name,
    label_values,
    list_annotated_slices,
    name_values,
    read_label_info,
    read_request,
    unnamed_values_note,
)
from baps.annotations.merge import merge_concurrent_labels
from baps.errors import BapsError, InputError, NotFoundError, StorageError
from baps.imaging.label_map import LabelMap, Overlaps
from baps.imaging.volume import Volume
from baps.io import read_label_map, read_volume, write_label_map
from baps.server.datastores.dicomweb import PacsDatastore
from baps.server.datastores.folder import StudiesDatastore
from baps.server.datastores.index import AtomicIndex
from baps.server.labels.read_back import check_version
from baps.utils.printable import printable


def save_label(
    datastore: Datastore,
    labels: Mapping[str, int],
    image_id: str,
    path: Path,
    tag: str,
    info: dict[str, Any],
    complete_labels: bool = False,
    confirms: bool = False,
) -> tuple[str, ...]:
    """Save a label, with its author, whether a person confirmed it, and the slices on which it was annotated.

    Args:
        datastore: Datastore of the server.
        labels: Names and values of the site.
        image_id: Name of the image.
        path: The uploaded file.
        tag: ``final``; or ``draft``, which trainings and Next Sample ignore. A label that nobody has confirmed is
            never final: it is saved as ``original``, so that it replaces no label and Next Sample still offers the
            image.
        info: What the viewer sent about the label, see ``read_request``.
        complete_labels: Whether an organ that is marked is marked completely, see ``list_annotated_slices``.
        confirms: Whether the user is a trainer, who may change labels of other annotators, see
            ``baps.annotations.disputes``.

    Returns:
        Sentences for the user: how the label was read, and what became of labels of other annotators.

    Raises:
        NotFoundError: if there is no such image.
        InputError: if the file cannot be read, is empty, does not have the geometry of the image, or marks a value
            without a name; or if there is no such tag.
        StorageError: if the disk is full.
        BapsError: if the stored label differs from the one that was sent; or if the PACS refuses it: the message says
            whether it is kept.
    """
    check_tag(tag)
    image = datastore.get_image_uri(image_id) if image_id else ""
    if not image:
        raise NotFoundError(f"There is no image {image_id!r} in the datastore; the label was not saved.")
    sent, extra = read_request(info)
    if tag == DefaultLabelTag.FINAL.value and not sent.confirmed:
        tag = DefaultLabelTag.ORIGINAL.value
    volume, source = read_volume(Path(image)), dicom_source(datastore, image_id)
    label_map = read_label_map(path, volume, source)
    marked = set(label_map.values())
    if not marked:
        raise InputError("The label is empty: no voxel is marked. Segment the organ, then submit. Nothing was saved.")
    last_slice = label_map.shape[2] - 1
    if sent.slices and max(sent.slices) > last_slice:
        raise InputError(f"The label has slices 0 to {last_slice}, not {max(sent.slices)}. Nothing was saved.")
    values = name_values(sent, label_map, labels)
    notes: tuple[str, ...] = ()
    for name in values:
        check_segment_name(name)
    # Empty segments that are no labels of the site are left out, because nothing uses their slices.
    listed = {name: value for name, value in values.items() if value in marked or name in labels}
    annotated = list_annotated_slices(sent, label_map, listed, complete_labels)
    drawn = {name for name, value in values.items() if value in marked or sent.slices is not None}
    common_info = {
        **({"extra": extra} if extra else {}),
        "author": sent.author,
        "model": sent.model,
        "confirmed": sent.confirmed,
    }

    def store(folder: Path, earlier: SavedLabel | None, base_version: str | None) -> None:
        nonlocal notes
        merged_map, merged_values, slices, file = label_map, values, dict(annotated), path
        authors = {name: sent.author for name, value in values.items() if value in marked}
        disputes = DisputeResult()
        merge_notes: tuple[str, ...] = ()
        if sent.confirmed and earlier and earlier.info.confirmed:
            merged = merge_concurrent_labels(
                label_map, values, sent, sent.author, earlier.label_map, earlier.info, labels
            )
            merge_notes = merged.notes
            if merged.organs:
                merged_map, merged_values = merged.label_map, merged.values
                file = write_label_map(folder / "label", merged_map, volume)
                for name in merged.organs:
                    authors[name] = earlier.info.author_of(name)
                    slices.pop(name, None)  # A label without annotated slices was annotated on all.
                    if name in (earlier_slices := earlier.info.annotated_slices or {}):
                        slices[name] = sorted(earlier_slices[name])
            if not confirms:
                authors |= _authors_of_unchanged(authors, merged_map, merged_values, earlier, labels)
            _keep_unchanged_slices(slices, merged_map, merged_values, earlier, sent.author, labels)
            is_confirmation = confirms and is_same(label_map, values, earlier, labels)
            reviewed = drawn | set(earlier.info.disputed) if is_confirmation else drawn
            new = NewLabel(merged_map, merged_values, slices, sent.author, reviewed, confirms)
            if tag == DefaultLabelTag.FINAL.value:  # Trainings use final labels only.
                read_version = partial(_read_version, datastore, image_id, tag, volume)
                disputes = find_disputes(new, earlier, read_version, labels)
        label_info = {
            **common_info,
            "label_info": _segments(merged_values, info),
            "authors": authors,
            "annotated_slices": slices,
            **disputes.to_dict(),
        }
        check = check_version(merged_map, merged_values, volume, source)
        store_notes = _store(datastore, image_id, file, tag, label_info, check, base_version, confirms)
        read_notes = (*label_map.notes, *unnamed_values_note(label_map, values))
        notes = (*read_notes, *store_notes, *merge_notes, *disputes.notes)

    _save(datastore, image_id, tag, volume, store)
    return notes


def save_mask(
    datastore: Datastore,
    labels: Mapping[str, int],
    image_id: str,
    image: Volume,
    organ: str,
    mask: NDArray[np.bool_],
    slices: Collection[int] | None,
    model: str,
    author: str = "",
    confirms: bool = False,
) -> str:
    """Save the mask of a model that a person accepted. Other slices of the organ, and other organs, are unchanged.

    In a folder of studies, voxels of other organs are removed from the mask. A mask that is saved already is not stored
    again.

    Args:
        datastore: Datastore of the server.
        labels: Names and values of the site.
        image_id: Name of the image.
        image: The volume.
        organ: The label.
        mask: Boolean mask, (I, J, K).
        slices: Slices across K that are replaced by those of the mask, and count as annotated. None replaces the whole
            organ; the slices that the mask, or the organ before, is on count as annotated.
        model: Name of the model.
        author: The person who accepted the mask.
        confirms: Whether the user is a trainer, as for ``save_label``.

    Returns:
        A sentence for the user.

    Raises:
        NotFoundError: if there is no such image.
        InputError: if the organ is not a label of the site, nothing is marked, or the datastore or its earlier label
            cannot be used.
        StorageError: if the disk is full.
        BapsError: if the stored label differs from the one that was sent, or the PACS refuses it.
    """
    known = datastore.has_image(image_id) if isinstance(datastore, AtomicIndex) else image_id in datastore.list_images()
    if not known:
        raise NotFoundError("The image is not in the datastore, so its mask cannot be saved there. Open one that is.")
    if organ not in labels:
        raise InputError(f"There is no label {organ!r}. A mask is saved as one of these: {', '.join(labels)}.")
    if not isinstance(datastore, (StudiesDatastore, PacsDatastore)):
        raise InputError("Masks are saved to a folder of studies or a PACS only. Submit the label from the viewer.")
    author, tag, sentence = printable(author[:MAX_NAME_LENGTH]), DefaultLabelTag.FINAL.value, ""

    def store(folder: Path, earlier: SavedLabel | None, base_version: str | None) -> None:
        nonlocal sentence
        if isinstance(datastore, PacsDatastore):
            label_map, info = datastore.label_to_edit(image_id, organ, image)
        elif earlier:
            label_map, info = earlier.label_map, earlier.info
        else:
            label_map, info = LabelMap((np.zeros(image.shape, np.uint8),)), read_label_info({})
        present = label_map.values()
        if present and not info.confirmed:
            raise InputError("Nobody has confirmed the label of this image. Check and submit it before you add to it.")
        values = label_values(info, labels, label_map.names) if present else {}
        used_values = {0, *values.values(), *present}
        free_value = max(used_values) + 1 if labels[organ] in used_values else labels[organ]
        value = values.setdefault(organ, free_value)
        old_mask = label_map.mask(value)
        marked = np.flatnonzero((old_mask | mask).any((0, 1))).tolist()
        replaced = sorted(marked if slices is None else slices)
        others = label_map.without(value)
        requested = old_mask.copy()
        requested[:, :, replaced] = mask[:, :, replaced]
        new_mask = requested & (old_mask | ~others.foreground())
        if not new_mask.any():
            raise InputError(f"The mask of {organ} is empty, or lies in other organs. Nothing was saved.")
        skipped = int(requested.sum() - new_mask.sum())
        exception = f", except {skipped} voxels that are marked as other organs" if skipped else ""
        if np.array_equal(old_mask, new_mask):
            sentence = f"It was saved as {organ} before{exception}."
            return
        changed = others.with_masks({value: new_mask}, {value: name for name, value in values.items()})
        annotated = {name: sorted(indices) for name, indices in (info.annotated_slices or {}).items()}
        if organ in annotated or not old_mask.any():  # A label without annotated slices was annotated on all.
            annotated[organ] = sorted({*annotated.get(organ, []), *replaced})
        disputes = DisputeResult()
        if earlier:
            new = NewLabel(changed, values, annotated, author, {organ}, confirms)
            disputes = find_disputes(new, earlier, partial(_read_version, datastore, image_id, tag, image), labels)
        label_info = {
            "label_info": _segments(values, {}),
            "author": author,
            "authors": {**{name: info.author_of(name) for name in values}, organ: author},
            "model": model,
            "confirmed": True,
            "annotated_slices": annotated,
            **disputes.to_dict(),
        }
        path = write_label_map(folder / "label", changed, image)
        check = check_version(changed, values, image, dicom_source(datastore, image_id))
        store_notes = _store(datastore, image_id, path, tag, label_info, check, base_version, confirms)
        sentence = " ".join([f"Saved as {organ}{exception}.", *store_notes, *disputes.notes])

    _save(datastore, image_id, tag, image, store, must_read=True)
    return sentence


_MAX_ATTEMPTS = 4
"""Maximum number of times that a label is merged because another user was faster. The last time, others must wait."""


def _save(
    datastore: Datastore,
    image_id: str,
    tag: str,
    image: Volume,
    store: Callable[[Path, SavedLabel | None, str | None], None],
    must_read: bool = False,
) -> None:
    """Read the earlier label, and call a function that merges it with the new one and stores the result.

    Args:
        datastore: Datastore of the server.
        image_id: Name of the image.
        tag: Tag of the label.
        image: The volume.
        store: Gets an empty folder, the earlier label or None, and the name of its version or None. It is called again
            if another user was faster.
        must_read: Whether an earlier label that cannot be read is an error.

    Raises:
        StorageError: if the disk is full.
    """
    try:
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            exclusive = isinstance(datastore, PacsDatastore) or attempt == _MAX_ATTEMPTS
            with _locked(datastore, image_id, tag, exclusive), tempfile.TemporaryDirectory() as folder:
                base_version, earlier = _read_earlier(datastore, image_id, tag, image, must_read)
                try:
                    store(Path(folder), earlier, base_version)
                except OutdatedError:
                    if attempt == _MAX_ATTEMPTS:
                        raise
                else:
                    return
    except OSError as error:
        raise StorageError(
            f"The label could not be saved ({error.strerror}). The earlier one, if any, is unchanged. Make room on the "
            "server's disk and submit again."
        ) from error


@contextmanager
def _locked(datastore: Datastore, image_id: str, tag: str, exclusive: bool) -> Iterator[None]:
    """Hold the lock of a label if it is to be saved exclusively. MONAI Label's own datastores have no such lock."""
    has_lock = exclusive and isinstance(datastore, AtomicIndex)
    with datastore.history.locked(image_id, tag) if has_lock else nullcontext():
        yield


def dicom_source(datastore: Datastore, image_id: str) -> Path | None:
    """Return the DICOM series or file of an image in a folder of studies, or None for other images.

    Args:
        datastore: Datastore of the server.
        image_id: Name of the image.
    """
    return datastore.source(image_id) if isinstance(datastore, StudiesDatastore) else None


def _store(
    datastore: Datastore,
    image_id: str,
    path: Path,
    tag: str,
    info: dict[str, Any],
    check: Callable[[Version], None],
    base_version: str | None,
    confirms: bool,
) -> list[str]:
    """Store a label. In a folder of studies it is checked before it is served; a PACS datastore checks by itself.

    Returns:
        Sentences for the user.
    """
    if isinstance(datastore, PacsDatastore):
        return datastore.store_label(image_id, path, tag, info, confirms)
    if isinstance(datastore, StudiesDatastore):
        datastore.save_label(image_id, str(path), tag, info, check, base_version)
    else:
        datastore.save_label(image_id, str(path), tag, info)
    return []


def _read_earlier(
    datastore: Datastore, image_id: str, tag: str, image: Volume, must_read: bool
) -> tuple[str | None, SavedLabel | None]:
    """Read the label that is about to be replaced.

    Returns:
        The name of its version, and the label. Both are None for final labels in a PACS, which replace nothing.
    """
    if not isinstance(datastore, AtomicIndex) or (
        isinstance(datastore, PacsDatastore) and tag == DefaultLabelTag.FINAL
    ):
        return None, None
    if isinstance(datastore, StudiesDatastore):
        datastore.check_writable("label")
    name, version = datastore.history.newest(image_id, tag)
    if version is None:
        return name, None
    try:
        return name, _read_saved(datastore, image_id, version, image)
    except InputError:  # For example, somebody copied the file into the folder. Its version is kept.
        if must_read:
            raise
        return name, None


def _read_version(datastore: Datastore, image_id: str, tag: str, image: Volume, name: str) -> SavedLabel | None:
    """Read an earlier version of a label. Return None if it was removed or cannot be read any more."""
    try:
        return _read_saved(datastore, image_id, datastore.history.version(image_id, tag, name), image)
    except BapsError:
        return None


def _read_saved(datastore: Datastore, image_id: str, version: Version, image: Volume) -> SavedLabel:
    label_map = read_label_map(version.file, image, dicom_source(datastore, image_id))
    return SavedLabel(version.name, label_map, read_label_info(version.info))


def _keep_unchanged_slices(
    annotated: dict[str, list[int]],
    new: LabelMap,
    values: Mapping[str, int],
    earlier: SavedLabel,
    author: str,
    labels: Mapping[str, int],
) -> None:
    """Add the annotated slices of other authors' organs on which the organ is unchanged.

    An annotator who corrects one slice of such an organ sends only that slice as annotated.
    """
    known = earlier.info.annotated_slices or {}
    organs = [name for name in annotated if earlier.info.author_of(name) != author and known.get(name)]
    overlaps = _overlaps(organs, new, values, earlier, labels)
    same = (overlaps.old == overlaps.new) & (overlaps.old == overlaps.both) & (overlaps.old > 0)
    for column, name in enumerate(organs):
        unchanged = (k for k in np.flatnonzero(same[:, column]).tolist() if k in known[name])
        annotated[name] = sorted({*annotated[name], *unchanged})


def _authors_of_unchanged(
    organs: Collection[str], new: LabelMap, values: Mapping[str, int], earlier: SavedLabel, labels: Mapping[str, int]
) -> dict[str, str]:
    """Return the earlier authors of the organs that are unchanged.

    Viewers submit all organs of a label, also those of other authors. Without this, the annotator would become the
    author of a colleague's organ, and could erase it later.
    """
    names = sorted(organs)
    overlaps = _overlaps(names, new, values, earlier, labels)
    same = ((overlaps.old == overlaps.new) & (overlaps.old == overlaps.both)).all(0)
    return {name: earlier.info.author_of(name) for name, unchanged in zip(names, same, strict=True) if unchanged}


def _overlaps(
    organs: Sequence[str], new: LabelMap, values: Mapping[str, int], earlier: SavedLabel, labels: Mapping[str, int]
) -> Overlaps:
    """Count the voxels of organs in the earlier label, in the new one, and in both, slice by slice."""
    return Overlaps.count(earlier.label_map, new, [(earlier.value(name, labels), values[name]) for name in organs])


def _segments(values: Mapping[str, int], info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the names and values of segments, with everything else that was sent about them."""
    sent = {(segment["name"], segment["idx"]): segment for segment in info.get("label_info") or []}
    return [{**sent.get((name, value), {}), "name": name, "idx": value} for name, value in values.items()]
