"""Find the image that a draft was drawn on, and save the draft as a label of it.

An image is recognised by its voxels alone, see ``baps.imaging.fingerprint``. A draft is saved only if its image, and
the orientation in which the viewer sent it, are certain.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from cachetools import LRUCache
from monailabel.interfaces.datastore import Datastore
from numpy.typing import NDArray

from baps.annotations.drafts import Draft, DraftStore
from baps.errors import BapsError, InputError, NotFoundError
from baps.imaging.fingerprint import PlaneSums
from baps.imaging.volume import Volume
from baps.io import SeveralVolumesError, read_geometry, read_volume
from baps.server.datastores.dicomweb import PacsDatastore
from baps.server.datastores.folder import StudiesDatastore
from baps.server.request_names import checked_name

MODEL = "nninteractive"
"""Name of the model in what is stored with a label that was a draft."""

SaveMask = Callable[[str, Volume, str, NDArray[np.bool_], Collection[int] | None, str, str, bool], str]
"""Saves a mask, as ``save_labels.save_mask``. It takes the image, the volume, the label, the mask (I, J, K), the slices
across K, the model, the author, and whether the user may confirm labels of others."""

_MAX_KNOWN = 100_000
"""Number of images whose sums are kept."""

_QUICK_SUFFIXES = (".nii", ".nii.gz")
"""Suffixes of images whose shape can be read without their voxels."""

_MAX_LISTED = 5
"""Number of images that a message names."""


@dataclass(frozen=True)
class Search:
    """The images that may be that of a draft.

    Attributes:
        images: names of the images that have its voxels in some orientation.
        is_complete: whether all images of the site were compared.
    """

    images: tuple[str, ...]
    is_complete: bool


@dataclass(frozen=True)
class DrawnImage:
    """An image with the mask of a draft.

    Attributes:
        name: name of the image.
        volume: the image.
        mask: the mask, (I, J, K).
    """

    name: str
    volume: Volume
    mask: NDArray[np.bool_]


class DraftImages:
    """Finds the images of drafts. Thread-safe. The hashes of an image are kept as long as its file does not change.

    Of a PACS, only images that were fetched before are compared; no other is fetched, unless a user names it.

    Args:
        datastore: Returns the datastore.
    """

    def __init__(self, datastore: Callable[[], Datastore]) -> None:
        self._datastore, self._reading = datastore, threading.Lock()
        self._shapes: LRUCache[Any, tuple[int, ...]] = LRUCache(_MAX_KNOWN)
        self._sums: LRUCache[Any, PlaneSums] = LRUCache(_MAX_KNOWN)

    def search(self, draft: Draft, seconds: float = inf) -> Search:
        """Compare a draft with all images.

        Args:
            draft: The draft.
            seconds: Time after which no further image is read. A later call goes on from there.

        Returns:
            What was found.
        """
        deadline, found, skipped = time.monotonic() + seconds, list[str](), 0
        for image, path in self._candidates():
            with suppress(OSError):  # It was removed a moment ago.
                sums = self._sums_of(draft, image, path, can_read=time.monotonic() < deadline)
                if sums is None:
                    skipped += 1
                elif draft.image.possible_orientations(sums):
                    found.append(image)
        return Search(tuple(found), not skipped)

    def find(self, draft: Draft, mask: NDArray[np.bool_], image: str = "") -> DrawnImage:
        """Find the image of a draft, and bring the mask into the order of its voxels.

        Args:
            draft: The draft.
            mask: Its mask, in the viewer's order of axes.
            image: Name of the image, or "" to search for it.

        Returns:
            The image and the mask.

        Raises:
            NotFoundError: If there is no such image.
            InputError: If no image has exactly these voxels, or several have, or this one in several orientations.
            BapsError: If the image cannot be fetched or read.
        """
        if image:
            return self._match(draft, mask, image)
        matched, drawn, unclear = list[str](), None, None
        for name in self.search(draft).images:
            try:
                drawn = self._match(draft, mask, name)
            except _UnclearOrientationError as error:
                unclear = error
            except InputError:  # Its sums are the same, and its values are not.
                continue
            matched.append(name)
            if len(matched) > _MAX_LISTED:
                break
        if len(matched) > 1:
            names = ", ".join(matched[:_MAX_LISTED]) + (", ..." if len(matched) > _MAX_LISTED else "")
            raise InputError(
                f"Several images have the voxels that this draft was drawn on: {names}. Nothing was saved. Name the "
                "one that it belongs to."
            )
        if unclear:
            raise unclear
        if drawn is None:
            raise InputError(
                "No image on this server has the voxels that this draft was drawn on. Nothing was saved. If the image "
                "is in a PACS, name its series; if the viewer changed it before you segmented it, save the mask there, "
                "and import it (baps labels import)."
            )
        return drawn

    def _match(self, draft: Draft, mask: NDArray[np.bool_], image: str) -> DrawnImage:
        datastore = self._datastore()
        checked_name(image, "image")
        if not isinstance(datastore, PacsDatastore) and image not in datastore.list_images():
            raise NotFoundError(f"There is no image {image!r} in the datastore. Nothing was saved.")
        volume = read_volume(Path(datastore.get_image_uri(image)))
        orientations = draft.image.orientations(volume.voxels)
        if not orientations:
            raise InputError(
                f"The image {image} does not have the voxels that this draft was drawn on. Nothing was saved."
            )
        if len(orientations) > 1:
            raise _UnclearOrientationError(image)
        return DrawnImage(image, volume, np.ascontiguousarray(orientations[0].undo(mask)))

    def _candidates(self) -> Iterator[tuple[str, Path]]:
        """Yield the names of the images on this machine, and their files or folders."""
        datastore = self._datastore()
        if isinstance(datastore, PacsDatastore):
            yield from datastore.fetched_images().items()
        elif isinstance(datastore, StudiesDatastore):
            yield from ((image, datastore.original(image)) for image in datastore.list_images())

    def _sums_of(self, draft: Draft, image: str, path: Path, can_read: bool) -> PlaneSums | None:
        """Return the sums of an image, without its values if its shape differs; None if it must be read first."""
        status = path.stat()
        key = (image, str(path), status.st_mtime_ns, status.st_size, status.st_ino)
        with self._reading:  # Volumes are large, so one at a time.
            shape, sums = self._shapes.get(key), self._sums.get(key)
            try:
                if shape is None and can_read and path.name.lower().endswith(_QUICK_SUFFIXES):
                    shape = self._shapes[key] = read_geometry(path).shape
                if shape is not None and sorted(shape) != sorted(draft.shape):
                    return PlaneSums(shape, ("", "", ""), ("", "", ""))
                if sums is None and can_read:
                    volume = self._read(image, path)
                    self._shapes[key] = volume.shape
                    sums = self._sums[key] = PlaneSums.of(volume.voxels)
            except BapsError:  # An image that cannot be read was not segmented either.
                sums = self._sums[key] = PlaneSums((0, 0, 0), ("", "", ""), ("", "", ""))
                self._shapes[key] = sums.shape
            return sums

    def _read(self, image: str, path: Path) -> Volume:
        """Read an image as it was placed in the folder, without converting it unless it is one volume of several."""
        try:
            return read_volume(path)
        except SeveralVolumesError:
            return read_volume(Path(self._datastore().get_image_uri(image)))


class _UnclearOrientationError(InputError):
    """The voxels of an image are the same in several orientations."""

    def __init__(self, image: str) -> None:
        super().__init__(
            f"The image {image} is the same in several orientations, so it is not certain where the mask lies. Nothing "
            "was saved. Save the mask in the viewer, and import it (baps labels import)."
        )


@dataclass(frozen=True)
class ConfirmedDraft:
    """A draft that was saved as a label.

    Attributes:
        draft: the draft.
        image: name of the image.
        note: a sentence for the user.
    """

    draft: Draft
    image: str
    note: str


def confirm_draft(
    drafts: DraftStore,
    images: DraftImages,
    save: SaveMask,
    name: str,
    image: str = "",
    confirms: bool = False,
    complete_labels: bool = False,
) -> ConfirmedDraft:
    """Save a draft as the final label of its image, and delete it. Other organs of the label are unchanged.

    Args:
        drafts: The drafts.
        images: Finds the image.
        save: Saves the mask.
        name: Name of the draft.
        image: Name of the image, or "" to search for it.
        confirms: Whether the user may confirm labels of others, as for ``save_label``.
        complete_labels: Whether slices without the mask count as annotated too, see ``list_annotated_slices``.

    Returns:
        What was saved.

    Raises:
        DraftTakenError: If somebody else confirms it now.
        MissingDraftError: If there is no such draft.
        NotFoundError: If there is no such image.
        InputError: If the image is not certain, or as ``save_mask``. The draft stays.
        BapsError: If the draft is damaged, or the label could not be saved. The draft stays.
    """
    with drafts.claim(name) as draft:
        drawn = images.find(draft, drafts.mask(name), image)
        slices = range(drawn.volume.shape[2]) if complete_labels else None
        note = save(drawn.name, drawn.volume, draft.label, drawn.mask, slices, MODEL, draft.user, confirms)
        drafts.delete(name)
    return ConfirmedDraft(draft, drawn.name, note)
