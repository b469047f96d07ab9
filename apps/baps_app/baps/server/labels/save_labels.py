"""Save labels and masks of models: check them against their image, merge them with earlier labels, and read them back.

A label is read, checked and merged with the earlier one while others save; where one of them was faster, it is merged
with theirs again. Only to store it, the lock of this label is held, against other threads, other processes and the
command line. What is kept of earlier labels: ``baps.annotations.history``, or the PACS.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
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
    whole: bool = False,
    confirms: bool = False,
) -> tuple[str, ...]:
    """Save a label into the datastore, and with it who made it, whether a person confirmed it, and on which
    slices it was looked for.

    Args:
        datastore: of the server.
        labels: of the site.
        image_id: which image.
        path: the uploaded file.
        tag: ``final``; or ``draft``, which no training takes and Next Sample does not heed. What nobody has confirmed
            is never final: it is kept as ``original``, so that it replaces no label and Next Sample goes on offering
            the image.
        info: what the viewer says of it, see ``read_request``.
        whole: see ``annotated_slices``.
        confirms: whether who saves is a trainer, whose word on the work of others counts, see ``disputes``.

    Returns:
        Sentences for who saves it: how it was read, and what became of the work of others.

    Raises:
        NotFoundError: if there is no such image.
        InputError: if the file cannot be read, is empty, does not lie where the image does, or marks a value that has
            no name; or if there is no such tag.
        StorageError: if the disk is full.
        BapsError: if what was stored is not what was sent; or if the PACS does not take it, the sentence says whether
            it is kept.
    """
    check_tag(tag)
    image = datastore.get_image_uri(image_id) if image_id else ""
    if not image:
        raise NotFoundError(f"There is no image {image_id!r} in the datastore; the label was not saved.")
    sent, extra = read_request(info)
    if tag == DefaultLabelTag.FINAL.value and not sent.confirmed:
        tag = DefaultLabelTag.ORIGINAL.value
    volume, source = read_volume(Path(image)), source_of(datastore, image_id)
    found = read_label_map(path, volume, source)
    marked = set(found.values())
    if not marked:
        raise InputError("The label is empty: no voxel is marked. Segment the organ, then submit. Nothing was saved.")
    if sent.slices and max(sent.slices) >= found.shape[2]:
        raise InputError(f"The label has slices 0 to {found.shape[2] - 1}, not {max(sent.slices)}. Nothing was saved.")
    values = name_values(sent, found, labels)
    notes: tuple[str, ...] = ()
    for name in values:
        check_segment_name(name)
    wanted = {name: value for name, value in values.items() if value in marked or name in labels}
    annotated = list_annotated_slices(sent, found, wanted, whole)  # Of others nobody asks, and the list would grow.
    drawn = {name for name, value in values.items() if value in marked or sent.slices is not None}
    kept = {
        **({"extra": extra} if extra else {}),
        "author": sent.author,
        "model": sent.model,
        "confirmed": sent.confirmed,
    }

    def store(folder: Path, earlier: SavedLabel | None, after: str | None) -> None:
        nonlocal notes
        merged, names, covered, file = found, values, dict(annotated), path
        authors = {name: sent.author for name, value in values.items() if value in marked}
        judged = DisputeResult()
        merge_notes: tuple[str, ...] = ()
        if sent.confirmed and earlier and earlier.info.confirmed:
            others = merge_concurrent_labels(found, values, sent, sent.author, earlier.label_map, earlier.info, labels)
            merge_notes = others.notes
            if others.organs:
                merged, names = others.label_map, others.values
                file = write_label_map(folder / "label", merged, volume)
                for name in others.organs:
                    authors[name] = earlier.info.author_of(name)
                    covered.pop(name, None)  # A label without annotated slices was looked for on all.
                    if name in (before := earlier.info.annotated_slices or {}):
                        covered[name] = sorted(before[name])
            if not confirms:
                authors |= _authors_unchanged(authors, merged, names, earlier, labels)
            _cover_unchanged(covered, merged, names, earlier, sent.author, labels)
            again = confirms and is_same(found, values, earlier, labels)
            looked_at = drawn | set(earlier.info.disputed) if again else drawn
            new = NewLabel(merged, names, covered, sent.author, looked_at, confirms)
            if tag == DefaultLabelTag.FINAL.value:  # No training takes the others.
                judged = find_disputes(new, earlier, partial(_read_version, datastore, image_id, tag, volume), labels)
        more = {
            "label_info": _segments(names, info),
            "authors": authors,
            "annotated_slices": covered,
            **judged.record(),
        }
        check = check_version(merged, names, volume, source)
        store_notes = _store(datastore, image_id, file, tag, {**kept, **more}, check, after, confirms)
        notes = (*found.notes, *unnamed_values_note(found, values), *store_notes, *merge_notes, *judged.notes)

    _save(datastore, image_id, tag, volume, store)
    return notes


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
    confirms: bool = False,
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
        confirms: as in ``save_label``.

    Returns:
        A sentence for who saved it. Nothing is stored twice.

    Raises:
        NotFoundError: if there is no such image.
        InputError: if the organ is no label of the site, nothing is marked, or the datastore or its earlier label
            cannot be used.
    """
    known = datastore.has_image(image_id) if isinstance(datastore, AtomicIndex) else image_id in datastore.list_images()
    if not known:
        raise NotFoundError("The image is not in the datastore, so its mask cannot be saved there. Open one that is.")
    if organ not in labels:
        raise InputError(f"A mask is saved under the name of a label: {', '.join(labels)}. {organ!r} is none of them.")
    if not isinstance(datastore, (StudiesDatastore, PacsDatastore)):
        raise InputError("Masks are saved to a folder of studies or a PACS only. Submit the label from the viewer.")
    author, tag, sentence = printable(author[:MAX_NAME_LENGTH]), DefaultLabelTag.FINAL.value, ""

    def store(folder: Path, earlier: SavedLabel | None, after: str | None) -> None:
        nonlocal sentence
        if isinstance(datastore, PacsDatastore):
            found, info = datastore.label_to_change(image_id, organ, image)
        elif earlier:
            found, info = earlier.label_map, earlier.info
        else:
            found, info = LabelMap((np.zeros(image.shape, np.uint8),)), read_label_info({})
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
        after_all = wanted & (before | ~others.foreground())
        if not after_all.any():
            raise InputError(f"The mask of {organ} is empty, or lies in other organs. Nothing was saved.")
        skipped = int(wanted.sum() - after_all.sum())
        but = f", but for {skipped} voxels that are marked as other organs" if skipped else ""
        if np.array_equal(before, after_all):
            sentence = f"It was saved as {organ} before{but}."
            return
        changed = others.with_masks({value: after_all}, {value: name for name, value in values.items()})
        annotated = {name: sorted(found) for name, found in (info.annotated_slices or {}).items()}
        if organ in annotated or not before.any():  # A label without annotated slices was looked for on all.
            annotated[organ] = sorted({*annotated.get(organ, []), *where})
        judged = DisputeResult()
        if earlier:
            new = NewLabel(changed, values, annotated, author, {organ}, confirms)
            judged = find_disputes(new, earlier, partial(_read_version, datastore, image_id, tag, image), labels)
        sent = {
            "label_info": _segments(values, {}),
            "author": author,
            "authors": {**{name: info.author_of(name) for name in values}, organ: author},
            "model": model,
            "confirmed": True,
            "annotated_slices": annotated,
            **judged.record(),
        }
        path = write_label_map(folder / "label", changed, image)
        check = check_version(changed, values, image, source_of(datastore, image_id))
        store_notes = _store(datastore, image_id, path, tag, sent, check, after, confirms)
        sentence = " ".join([f"Saved as {organ}{but}.", *store_notes, *judged.notes])

    _save(datastore, image_id, tag, image, store, must_read=True)
    return sentence


_TRIES = 4
"""Times that a label is merged, if others are faster; the last time they wait."""


def _save(
    datastore: Datastore,
    image_id: str,
    tag: str,
    image: Volume,
    store: Callable[[Path, SavedLabel | None, str | None], None],
    must_read: bool = False,
) -> None:
    """Have a label stored that is merged with the one it replaces.

    Args:
        datastore, image_id, tag: which label.
        image: the volume.
        store: is given an empty folder, the earlier label, or None, and the name of its version; may be called again.
        must_read: whether an earlier label that cannot be read is an error.

    Raises:
        StorageError: if the disk is full.
    """
    try:
        for attempt in range(1, _TRIES + 1):
            alone = isinstance(datastore, PacsDatastore) or attempt == _TRIES
            with _saving(datastore, image_id, tag, alone), tempfile.TemporaryDirectory() as folder:
                after, earlier = _earlier(datastore, image_id, tag, image, must_read)
                try:
                    store(Path(folder), earlier, after)
                except OutdatedError:
                    if attempt == _TRIES:
                        raise
                else:
                    return
    except OSError as error:
        raise StorageError(
            f"The label could not be saved ({error.strerror}). The earlier one, if any, is as it was. Make room on the "
            "server's disk and submit again."
        ) from error


@contextmanager
def _saving(datastore: Datastore, image_id: str, tag: str, alone: bool) -> Iterator[None]:
    """Nobody else saves this label meanwhile, if that is wanted. The host's own datastores have no such lock."""
    with datastore.history.locked(image_id, tag) if alone and isinstance(datastore, AtomicIndex) else nullcontext():
        yield


def source_of(datastore: Datastore, image_id: str) -> Path | None:
    """Return the DICOM series or file of an image of a folder of studies; none of other images."""
    return datastore.source(image_id) if isinstance(datastore, StudiesDatastore) else None


def _store(
    datastore: Datastore,
    image_id: str,
    path: Path,
    tag: str,
    info: dict[str, Any],
    check: Callable[[Version], None],
    after: str | None,
    confirms: bool,
) -> list[str]:
    """Store a label, in a folder of studies after the check. The PACS store reads back what it sends by itself.

    Returns:
        Sentences for who saves it.
    """
    if isinstance(datastore, PacsDatastore):
        return datastore.store_label(image_id, path, tag, info, confirms)
    if isinstance(datastore, StudiesDatastore):
        datastore.save_label(image_id, str(path), tag, info, check, after)
    else:
        datastore.save_label(image_id, str(path), tag, info)
    return []


def _earlier(
    datastore: Datastore, image_id: str, tag: str, image: Volume, must_read: bool
) -> tuple[str | None, SavedLabel | None]:
    """The label that is about to be replaced, after the name of its version; a PACS keeps each organ for itself."""
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
    except InputError:  # Laid there by hand, say. It is kept as it is.
        if must_read:
            raise
        return name, None


def _read_version(datastore: Datastore, image_id: str, tag: str, image: Volume, name: str) -> SavedLabel | None:
    """An earlier version of a label, or None if it is not there or cannot be read any more."""
    try:
        return _read_saved(datastore, image_id, datastore.history.version(image_id, tag, name), image)
    except BapsError:
        return None


def _read_saved(datastore: Datastore, image_id: str, version: Version, image: Volume) -> SavedLabel:
    found = read_label_map(version.file, image, source_of(datastore, image_id))
    return SavedLabel(version.name, found, read_label_info(version.info))


def _cover_unchanged(
    annotated: dict[str, list[int]],
    new: LabelMap,
    values: Mapping[str, int],
    earlier: SavedLabel,
    author: str,
    labels: Mapping[str, int],
) -> None:
    """Have slices of an organ of others stay looked at that were so, and are as they were.

    Who corrects one slice says of that one alone that it was looked at.
    """
    known = earlier.info.annotated_slices or {}
    organs = [name for name in annotated if earlier.info.author_of(name) != author and known.get(name)]
    pair = Overlaps.count(earlier.label_map, new, [(earlier.value(name, labels), values[name]) for name in organs])
    same = (pair.old == pair.new) & (pair.old == pair.both) & (pair.old > 0)
    for n, name in enumerate(organs):
        annotated[name] = sorted(
            {*annotated[name], *(k for k in np.flatnonzero(same[:, n]).tolist() if k in known[name])}
        )


def _authors_unchanged(
    organs: Collection[str], new: LabelMap, values: Mapping[str, int], earlier: SavedLabel, labels: Mapping[str, int]
) -> dict[str, str]:
    """Return who drew the organs that are as they were.

    Who submits a colleague's organ unchanged, as viewers do with the whole label, has not drawn it. Were they its
    author, they could erase it afterwards as their own.
    """
    names = sorted(organs)
    pair = Overlaps.count(earlier.label_map, new, [(earlier.value(name, labels), values[name]) for name in names])
    same = ((pair.old == pair.new) & (pair.old == pair.both)).all(0)
    return {name: earlier.info.author_of(name) for name, unchanged in zip(names, same, strict=True) if unchanged}


def _segments(values: Mapping[str, int], info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Names and values, with what else was sent of a segment."""
    sent = {(one["name"], one["idx"]): one for one in info.get("label_info") or []}
    return [{**sent.get((name, value), {}), "name": name, "idx": value} for name, value in values.items()]
