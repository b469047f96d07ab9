"""Parse prompts of 3D Slicer, OHIF and the command line for a model that answers in 3D."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from baps.imaging.volume import Volume
from baps.inference.requests.click import read_organ_clicks
from baps.prompts.volume_prompts import ClickOrBox, Triple, VolumeBox, VolumePoint


@dataclass(frozen=True)
class VolumeRequest:
    """A request for the mask of a whole object.

    Attributes:
        label: the organ, or "" if the viewer named none.
        prompts: a box if there is one, then clicks on the organ, then those beside it, in voxels of the volume.
        notes: sentences for the reply on what was skipped.
    """

    label: str
    prompts: tuple[ClickOrBox, ...]
    notes: tuple[str, ...] = ()


def read_volume_request(request: Mapping[str, Any], volume: Volume, labels: Sequence[str]) -> VolumeRequest:
    """Parse points on any number of slices, a box around the organ, or both.

    Args:
        request: the request as it was received, see ``read_organ_clicks``.
        volume: the volume that was clicked.
        labels: label names of the site.

    Returns:
        The prompts. A box has more than one slice along K unless it was drawn on one.

    Raises:
        InputError: if a field is invalid, or no prompt is left.
    """
    clicks = read_organ_clicks(request, volume, labels)
    prompts: list[ClickOrBox] = []
    boxes = [prompt.box for prompt in clicks.prompts.values() if prompt.box is not None]
    if boxes:
        low = (int(boxes[0][0]), int(boxes[0][1]), clicks.first)
        high = (round(boxes[0][2]) + 1, round(boxes[0][3]) + 1, clicks.last + 1)
        prompts.append(VolumeBox(low, high, True))
    beside = [(k, points) for k, points in clicks.background.items()]
    beside += [(k, prompt.negative) for k, prompt in clicks.prompts.items()]
    inside = [(k, prompt.positive) for k, prompt in clicks.prompts.items()]
    for by_slice, include in ((inside, True), (beside, False)):
        prompts += [VolumePoint(_voxel(x, y, k, volume.shape), include) for k, points in by_slice for x, y in points]
    return VolumeRequest(clicks.label, tuple(prompts), clicks.notes)


def _voxel(x: float, y: float, k: int, shape: Triple) -> Triple:
    """Return the voxel of a point inside the volume; a point on the far edge of the last voxel lies in that voxel."""
    return min(round(x), shape[0] - 1), min(round(y), shape[1] - 1), k
