"""Compare two versions of a label, and draw the slices that differ most. Pictures are made when they are looked at."""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from baps.errors import NotFoundError
from baps.imaging.canvas import SLICE_AXIS, Canvas, Plane
from baps.imaging.label_map import LabelMap, Overlaps
from baps.imaging.slice_image import canvas_image
from baps.imaging.windowing import Window, choose_window
from baps.server.web.label_versions import LoadedVersion, read_version
from baps.utils.cache import Cache

if TYPE_CHECKING:
    from baps.server.app import BapsApp

SHOWN = {"before": "Before", "after": "This version", "difference": "Difference"}
"""Pictures of a slice, and their titles."""

_COLOURS = {"before": (255, 157, 46), "after": (54, 209, 124), "added": (54, 209, 124), "removed": (255, 77, 109)}
_SIDE, _PICTURE_SIDE, _MIN_CROP = 512, 320, 128
"""Sides of the canvas, of a picture, and of the smallest part of the canvas that a picture shows, in pixels."""

_MAX_SLICES = 3
_CACHE_BYTES = 32 << 20


@dataclass(frozen=True)
class OrganChange:
    """What changed of an organ.

    Attributes:
        organ: The organ.
        dice: Dice of the two versions, 0 to 1, or None if only one of them marks the organ.
        added: Volume that only the later version marks, ml.
        removed: Volume that only the earlier version marks, ml.
        slices: Number of slices that differ.
    """

    organ: str
    dice: float | None
    added: float
    removed: float
    slices: int


@dataclass(frozen=True)
class ChangedSlice:
    """A slice that differs, on the canvas.

    Attributes:
        index: Index across K.
        image: (S, S, 3) uint8.
        before: What the earlier version marks of the organs that changed, (S, S).
        after: What the later version marks of them, (S, S).
    """

    index: int
    image: NDArray[np.uint8]
    before: NDArray[np.bool_]
    after: NDArray[np.bool_]


@dataclass(frozen=True)
class Difference:
    """The difference between two versions of a label.

    Attributes:
        organs: The organs that differ.
        slices: The slices that differ most, in order.
        depth: Number of slices of the volume.
    """

    organs: tuple[OrganChange, ...]
    slices: tuple[ChangedSlice, ...]
    depth: int


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        image: Name of the image.
        tag: Tag of the label.
        version: The later version.
        against: The earlier one, or "" for an empty label.
    """

    image: str
    tag: str
    version: str
    against: str


class Differences:
    """Compares versions. Thread-safe. The last results are in memory, because a page shows several pictures of each.

    Args:
        app: The app.
    """

    def __init__(self, app: BapsApp) -> None:
        self._app, self._cache, self._reading = app, Cache(_CACHE_BYTES, size_of), threading.Lock()

    def compare(self, comparison: Comparison) -> Difference:
        """Compare two versions.

        Args:
            comparison: The versions. They never change, so the result does not either.

        Returns:
            The difference.

        Raises:
            NotFoundError: If there is no such image or version.
            BapsError: If one of them cannot be read.
        """
        difference: Difference = self._cache.get_or_compute(comparison, lambda: self._compute(comparison))[0]
        return difference

    def draw(self, comparison: Comparison, index: int, show: str) -> bytes:
        """Draw a slice.

        Args:
            comparison: The versions.
            index: Index of the slice across K.
            show: Name of the picture, see ``SHOWN``.

        Returns:
            A PNG file.

        Raises:
            NotFoundError: As ``compare``, or if there is no such picture.
            BapsError: As ``compare``.
        """
        found = next((one for one in self.compare(comparison).slices if one.index == index), None)
        if found is None or show not in SHOWN:
            raise NotFoundError("There is no such picture. Open the page of the image again.")
        return draw_png(found, show)

    def _compute(self, comparison: Comparison) -> Difference:
        datastore, labels = self._app.datastore(), self._app.site.labels
        image, tag = comparison.image, comparison.tag
        with self._reading:  # Volumes are large, so one pair at a time.
            after = read_version(datastore, labels, image, tag, comparison.version)
            before = read_version(datastore, labels, image, tag, comparison.against) if comparison.against else None
            return find_difference(before, after)


def find_difference(before: LoadedVersion | None, after: LoadedVersion) -> Difference:
    """Find what differs between two versions.

    Args:
        before: The earlier version, or None for an empty label.
        after: The later version, of the same image.

    Returns:
        The difference.
    """
    volume = after.volume
    if before is None:
        before = LoadedVersion(volume, LabelMap((np.zeros(volume.shape, np.uint8),)), {}, {})
    organs = sorted({*before.values, *after.values})
    pairs = [(before.values.get(organ, 0), after.values.get(organ, 0)) for organ in organs]
    counts = Overlaps.count(before.label_map, after.label_map, pairs)
    added, removed = counts.new - counts.both, counts.old - counts.both
    changed = np.flatnonzero((added + removed).sum(0))
    voxel = float(abs(np.linalg.det(volume.affine[:3, :3]))) / 1000
    changes = tuple(
        OrganChange(
            organs[n],
            float(2 * counts.both[:, n].sum() / (counts.old[:, n].sum() + counts.new[:, n].sum()))
            if counts.old[:, n].any() and counts.new[:, n].any()
            else None,
            float(added[:, n].sum()) * voxel,
            float(removed[:, n].sum()) * voxel,
            int(np.count_nonzero(added[:, n] + removed[:, n])),
        )
        for n in changed
    )
    by_slice = (added + removed)[:, changed].sum(1)
    largest = sorted(np.argsort(-by_slice, kind="stable")[:_MAX_SLICES].tolist())
    masks = [_union(version, [organs[n] for n in changed]) for version in (before, after)]
    window = choose_window(volume)
    slices = tuple(_draw_slice(after, index, window, masks[0], masks[1]) for index in largest if by_slice[index])
    return Difference(changes, slices, volume.shape[2])


def _union(version: LoadedVersion, organs: list[str]) -> NDArray[np.bool_]:
    mask = np.zeros(version.volume.shape, bool)
    for organ in organs:
        if organ in version.values:
            mask |= version.mask(organ)
    return mask


def draw_png(changed: ChangedSlice, show: str) -> bytes:
    """Draw the part of a slice around what changed.

    Args:
        changed: The slice.
        show: ``before`` or ``after`` for the outline of a version; ``difference`` for what was added and removed.

    Returns:
        A PNG file.
    """
    rows, columns = _crop(changed)
    part = Image.fromarray(changed.image[rows, columns])
    scale = _PICTURE_SIDE / max(part.size)
    size = (round(part.width * scale), round(part.height * scale))
    pixels = np.asarray(part.resize(size, Image.Resampling.BICUBIC), np.float32).copy()
    masks = {name: _resize(mask[rows, columns], size) for name, mask in _masks(changed, show).items()}
    for name, mask in masks.items():
        colour = np.array(_COLOURS[name], np.float32)
        strength = 0.25 if show != "difference" else 0.6
        pixels[mask] = (1 - strength) * pixels[mask] + strength * colour
        pixels[mask & ~ndimage.binary_erosion(mask, iterations=2, border_value=1)] = colour
    file = io.BytesIO()
    Image.fromarray(pixels.round().astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def _masks(changed: ChangedSlice, show: str) -> Mapping[str, NDArray[np.bool_]]:
    if show == "difference":
        return {"added": changed.after & ~changed.before, "removed": changed.before & ~changed.after}
    return {show: changed.before if show == "before" else changed.after}


def _draw_slice(
    version: LoadedVersion, index: int, window: Window, before: NDArray[np.bool_], after: NDArray[np.bool_]
) -> ChangedSlice:
    plane = Plane(SLICE_AXIS, index)
    canvas = Canvas.fit(version.volume, plane, _SIDE)
    rows, columns = canvas.size
    masks = [(canvas.draw(plane.extract(mask).astype(np.float32)) > 0.5)[:rows, :columns] for mask in (before, after)]
    image = canvas_image(version.volume, plane, canvas, window)[:rows, :columns]
    return ChangedSlice(index, image, *masks)


def _resize(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    picture = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BICUBIC)
    inside: NDArray[np.bool_] = np.asarray(picture) > 127
    return inside


def _crop(changed: ChangedSlice) -> tuple[slice, slice]:
    """Return the rows and columns of a square around what either version marks."""
    marked = np.argwhere(changed.before | changed.after)
    if not len(marked):
        marked = np.array([[0, 0], np.array(changed.image.shape[:2]) - 1])
    centre, extent = (marked.min(0) + marked.max(0)) / 2, int((marked.max(0) - marked.min(0)).max())
    side = min(max(_MIN_CROP, round(1.4 * extent)), *changed.image.shape[:2])
    starts = [
        int(np.clip(middle - side / 2, 0, total - side))
        for middle, total in zip(centre, changed.image.shape[:2], strict=True)
    ]
    return slice(starts[0], starts[0] + side), slice(starts[1], starts[1] + side)


def size_of(difference: Difference) -> int:
    """Return the memory that the pictures of a difference take, bytes.

    Args:
        difference: The difference.
    """
    return 1 + sum(one.image.nbytes + one.before.nbytes + one.after.nbytes for one in difference.slices)
