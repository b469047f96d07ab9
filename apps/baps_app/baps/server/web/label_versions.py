"""Read the versions of a label: in a folder those of its history, in a PACS the segments that were stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from numpy.typing import NDArray

from baps.annotations.history import TAGS, LabelHistory, Version
from baps.annotations.label_info import label_values, read_label_info
from baps.annotations.remarks import describe
from baps.errors import BapsError, NotFoundError
from baps.imaging.label_map import LabelMap
from baps.imaging.volume import Volume
from baps.io import read_label_map, read_labels, read_volume
from baps.server.datastores.dicomweb import PacsDatastore
from baps.server.datastores.dicomweb.stored_segments import StoredSegment
from baps.server.datastores.folder import StudiesDatastore
from baps.server.datastores.index import AtomicIndex
from baps.server.web.label_table import FINAL, DrawnOrgan, drawn_organs


@dataclass(frozen=True)
class VersionRow:
    """A version of a label.

    Attributes:
        tag: Tag of the label.
        name: Name of the version; in a PACS, the SOPInstanceUID and the organ.
        saved: When it was saved.
        organs: Its organs.
        remarks: What is special about it.
        serves: Whether it is the newest, which is served.
        is_kept: Whether the history of this server has it, so that it can be restored.
        previous: Name of the version to compare it with, or "".
        damaged: Whether it cannot be read.
    """

    tag: str
    name: str
    saved: datetime
    organs: tuple[DrawnOrgan, ...]
    remarks: tuple[str, ...]
    serves: bool
    is_kept: bool
    previous: str
    damaged: bool

    @property
    def when(self) -> str:
        """When it was saved, to the second, because several may be saved in a minute."""
        return f"{self.saved.astimezone():%Y-%m-%d %H:%M:%S}"


@dataclass(frozen=True)
class RemovedVersion:
    """A version that was removed.

    Attributes:
        name: Name of the version.
        removed: When.
        why: Why.
    """

    name: str
    removed: str
    why: str


@dataclass(frozen=True)
class ImageLabels:
    """The versions of all labels of an image.

    Attributes:
        image: Name of the image.
        versions: Versions by tag, or by organ in a PACS; the newest first.
        removed: Removed versions by tag.
        newest: Name of the newest version of each tag that this server keeps.
    """

    image: str
    versions: Mapping[str, tuple[VersionRow, ...]]
    removed: Mapping[str, tuple[RemovedVersion, ...]]
    newest: Mapping[str, str]


def read_versions(datastore: Datastore, image: str) -> ImageLabels:
    """Read the versions of the labels of an image. Only their records are read, and no label file.

    Args:
        datastore: Datastore of the server.
        image: Name of the image.

    Returns:
        The versions.

    Raises:
        NotFoundError: If there is no such image.
        BapsError: If the PACS does not respond.
    """
    index = find_index(datastore, image)
    versions: dict[str, tuple[VersionRow, ...]] = {}
    removed: dict[str, tuple[RemovedVersion, ...]] = {}
    newest = {}
    if isinstance(index, PacsDatastore):
        segments: dict[str, list[tuple[StoredSegment, str]]] = {}
        for _, segment, reason in index.label_listing(image):
            segments.setdefault(segment.name, []).append((segment, reason))
        versions |= {organ: _pacs_versions(listed) for organ, listed in sorted(segments.items())}
    for tag in TAGS:
        kept = index.history.versions(image, tag)
        if kept:
            versions[tag] = _kept_versions(tag, kept)
            newest[tag] = kept[-1].name
        if gone := index.history.removed(image, tag):
            removed[tag] = tuple(RemovedVersion(one["version"], one["removed"], one["why"]) for one in gone)
    return ImageLabels(image, versions, removed, newest)


def find_index(datastore: Datastore, image: str) -> AtomicIndex:
    """Return a datastore if it has an image. Neither the disk nor a PACS is searched for new images.

    Args:
        datastore: Datastore of the server.
        image: Name of the image.

    Returns:
        The datastore.

    Raises:
        NotFoundError: If there is no such image.
    """
    is_known = isinstance(datastore, AtomicIndex) and (
        image in datastore._datastore.objects
        or (isinstance(datastore, PacsDatastore) and bool(datastore.label_listing(image)))
    )
    if not is_known:
        raise NotFoundError("There is no such image, or no label of it. Open the page Labels again.")
    index: AtomicIndex = datastore
    return index


def _kept_versions(tag: str, versions: list[Version]) -> tuple[VersionRow, ...]:
    rows = []
    for number, version in enumerate(versions):
        remarks = describe(version)
        if version.used_in_training and not version.info.get("found"):
            remarks.append("used by a training")
        rows.append(
            VersionRow(
                tag,
                version.name,
                version.saved_at,
                drawn_organs(version.info),
                tuple(remarks),
                number == len(versions) - 1,
                True,
                versions[number - 1].name if number else "",
                bool(version.info.get("damaged")),
            )
        )
    return tuple(reversed(rows))


def _pacs_versions(segments: list[tuple[StoredSegment, str]]) -> tuple[VersionRow, ...]:
    """Return the versions of an organ in a PACS. Trainings use the newest that is confirmed and can be read."""
    used = next((one.instance for one, reason in segments if one.confirmed and not reason), "")
    rows = []
    for number, (segment, reason) in enumerate(segments):
        remarks = [reason] if reason else []
        if not segment.confirmed:
            remarks.append("not confirmed, or disputed: trainings use an earlier one")
        rows.append(
            VersionRow(
                FINAL,
                f"{segment.instance} {segment.name}",
                segment.when,
                (DrawnOrgan(segment.name, segment.author, segment=segment),),
                tuple(remarks),
                segment.instance == used,
                False,
                f"{segments[number + 1][0].instance} {segment.name}" if number + 1 < len(segments) else "",
                bool(reason),
            )
        )
    return tuple(rows)


def read_version(datastore: Datastore, labels: Mapping[str, int], image: str, tag: str, name: str) -> LoadedVersion:
    """Read the voxels of a version.

    Args:
        datastore: Datastore of the server.
        labels: Names and values of the site.
        image: Name of the image.
        tag: Tag of the label.
        name: Name of the version.

    Returns:
        The version.

    Raises:
        NotFoundError: If there is no such version.
        InputError: If it does not fit the image.
        BapsError: If it is damaged, the disk does not answer, or the PACS does not respond.
    """
    index = find_index(datastore, image)
    try:
        volume = read_volume(Path(datastore.get_image_uri(image)))
        if isinstance(index, PacsDatastore) and tag == FINAL:
            return _read_segment(index, image, name, volume)
        version = index.history.version(image, tag, name)
        source = datastore.source(image) if isinstance(datastore, StudiesDatastore) else None
        label_map = read_label_map(version.file, volume, source)
    except OSError as error:
        raise BapsError(
            f"The image or this version of its label cannot be read ({error.strerror}). Tell the server's operator."
        ) from error
    info = read_label_info(version.info)
    annotated = {organ: frozenset(slices) for organ, slices in (info.annotated_slices or {}).items()}
    return LoadedVersion(volume, label_map, label_values(info, labels, label_map.names), annotated)


@dataclass(frozen=True)
class LoadedVersion:
    """The voxels of a version of a label.

    Attributes:
        volume: The image.
        label_map: The segments.
        values: Value of each organ in it.
        annotated: Slices across K that each organ was annotated on; all for an organ that is missing.
    """

    volume: Volume
    label_map: LabelMap
    values: Mapping[str, int]
    annotated: Mapping[str, frozenset[int]]

    def mask(self, organ: str) -> NDArray[np.bool_]:
        """Return the mask of an organ, (I, J, K); empty if it is not marked.

        Args:
            organ: The organ.
        """
        return self.label_map.mask(self.values[organ]) if organ in self.values else np.zeros(self.volume.shape, bool)


def _read_segment(datastore: PacsDatastore, image: str, name: str, volume: Volume) -> LoadedVersion:
    instance, _, organ = name.partition(" ")
    segment = next(
        (one for _, one, _ in datastore.label_listing(image) if (one.instance, one.name) == (instance, organ)),
        None,
    )
    if segment is None:
        raise NotFoundError("The PACS has no such version of this label. Open the page of the image again.")
    label = datastore.organ(image, [segment])
    mask = (read_labels(label.file, volume) > 0).view(np.uint8)
    return LoadedVersion(volume, LabelMap((mask,), {1: organ}), {organ: 1}, {organ: label.slices})


def latest_by_author(history: LabelHistory, image: str) -> dict[str, dict[str, Version]]:
    """Return the newest confirmed version that each author drew of each organ of an image.

    Args:
        history: The labels of the folder.
        image: Name of the image.

    Returns:
        Versions by author, by organ; only organs that several people drew.
    """
    by_organ: dict[str, dict[str, Version]] = {}
    for version in reversed(history.versions(image, DefaultLabelTag.FINAL.value)):
        if version.info.get("damaged") or version.info.get("confirmed") is False:
            continue
        for organ in drawn_organs(version.info):
            if organ.author:
                by_organ.setdefault(organ.organ, {}).setdefault(organ.author, version)
    return {organ: authors for organ, authors in by_organ.items() if len(authors) > 1}
