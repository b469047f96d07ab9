"""Read the JSON of requests of nnInteractive's clients, and write the server's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field, FiniteFloat

from baps.blackbox.volumes.interface import VolumeCapabilities
from baps.errors import InputError
from baps.prompts.volume_prompts import Triple, VolumeBox, VolumePoint
from baps.utils.packed_arrays import shape_text

VERSION = "2.6.0"
"""Version of nnInteractive's protocol that is spoken here."""

_USAGE = "Send what nninteractive-client 2 sends."
_BUFFER_TYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


class ImageForm(BaseModel, extra="ignore"):
    """What comes with an image."""

    image_properties: dict[str, Any] = Field(default_factory=dict)


class BufferForm(BaseModel, extra="ignore"):
    """The mask of the client."""

    shape: list[int] = Field(min_length=3, max_length=3)
    dtype: str

    def checked(self) -> tuple[tuple[int, ...], str]:
        """Return the shape and the type.

        Raises:
            InputError: If they are not those of a mask.
        """
        if min(self.shape) < 1 or self.dtype not in _BUFFER_TYPES:
            raise InputError("The mask of the viewer must have three axes with voxels, and be bool or integer.")
        return tuple(self.shape), self.dtype


class _PromptForm(BaseModel, extra="ignore"):
    include_interaction: bool = True
    run_prediction: bool = True


class PointForm(_PromptForm):
    """A click."""

    coordinates: list[FiniteFloat] = Field(min_length=3, max_length=3)

    def prompt(self, shape: Triple) -> VolumePoint:
        """Return the click.

        Args:
            shape: Size of the image.

        Raises:
            InputError: If it lies outside the image.
        """
        voxel = [round(value) for value in self.coordinates]
        if not all(0 <= index < size for index, size in zip(voxel, shape, strict=True)):
            raise InputError(f"The click lies outside the image of {shape_text(shape)} voxels. Click on the image.")
        return VolumePoint((voxel[0], voxel[1], voxel[2]), self.include_interaction)


class BoxForm(_PromptForm):
    """A box; the end of each range is not in it."""

    bbox_coords: list[list[FiniteFloat]] = Field(min_length=3, max_length=3)

    def prompt(self, shape: Triple) -> VolumeBox:
        """Return the part of the box that lies in the image.

        Args:
            shape: Size of the image.

        Raises:
            InputError: If it is empty or lies outside the image.
        """
        low, high = _ranges(self.bbox_coords, shape, "The box", clip=True)
        return VolumeBox(low, high, self.include_interaction)


class PaintedForm(_PromptForm):
    """A scribble or a lasso, painted on the whole image or on a part of it."""

    interaction_bbox: list[list[FiniteFloat]] | None = Field(None, min_length=3, max_length=3)

    def part(self, shape: Triple) -> tuple[Triple, Triple]:
        """Return the first voxel and the size of the part.

        Args:
            shape: Size of the image.

        Raises:
            InputError: If it is not a part of the image.
        """
        if self.interaction_bbox is None:
            return (0, 0, 0), shape
        low, high = _ranges(self.interaction_bbox, shape, "interaction_bbox", clip=False)
        x, y, z = (end - first for first, end in zip(low, high, strict=True))
        return low, (x, y, z)


class MaskForm(BaseModel, extra="ignore"):
    """A mask to start from."""

    run_prediction: bool = False


class AutozoomForm(BaseModel, extra="ignore"):
    """The switch of autozoom."""

    do_autozoom: bool


def _ranges(values: Sequence[Sequence[float]], shape: Triple, what: str, clip: bool) -> tuple[Triple, Triple]:
    low, high = [], []
    for pair, size in zip(values, shape, strict=True):
        if len(pair) != 2:
            raise InputError(f"{what} must have a first and a last voxel along each of three axes. {_USAGE}")
        first, end = round(pair[0]), round(pair[1])
        inside = (max(first, 0), min(end, size)) if clip else (first, end)
        if first >= end or inside[0] >= inside[1] or inside[0] < 0 or inside[1] > size:
            raise InputError(
                f"{what} is empty or lies outside the image of {shape_text(shape)} voxels. Draw it inside."
            )
        low.append(inside[0])
        high.append(inside[1])
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def read_spacing(properties: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """Read the distance of voxels along each axis of the array, or None if the viewer sent none that can be used.

    Args:
        properties: What the viewer sent about the image.
    """
    value = properties.get("spacing")
    if not isinstance(value, list) or len(value) != 3:
        return None
    if not all(isinstance(one, (int, float)) and 1e-6 < one < 1e6 for one in value):  # Not NaN either.
        return None
    return float(value[0]), float(value[1]), float(value[2])


def capabilities_reply(capabilities: VolumeCapabilities, autozoom: bool = True) -> dict[str, Any]:
    """Describe the model as nninteractive-server does.

    Args:
        capabilities: What is understood.
        autozoom: The flag of new sessions.

    Returns:
        The reply. There is no decay of prompts and no fixed patch. A mask to start from is corrected by prompts; it is
        not refined without one.
    """
    return {
        "supported_interactions": {
            "points": capabilities.points,
            "bbox2d": capabilities.flat_boxes,
            "bbox3d": capabilities.boxes,
            "scribble": capabilities.scribbles,
            "lasso": capabilities.lassos,
        },
        "channel_mapping": {
            "prev_seg": 0,
            "bbox2d": [1, 2],
            "bbox3d": [1, 2],
            "lasso": [1, 2],
            "points": [3, 4],
            "scribble": [5, 6],
        },
        "num_interaction_channels": 7,
        "supports_initial_label": True,
        "supports_zero_shot_label_refinement": False,
        "preferred_scribble_thickness": [2, 2, 2],
        "interaction_decay": 1.0,
        "patch_size": None,
        "do_autozoom": autozoom,
        "inference_session_version": VERSION,
        "license": capabilities.licence or "!!MISSING!!",  # As nninteractive-server says it.
        "supports_undo": True,
    }
