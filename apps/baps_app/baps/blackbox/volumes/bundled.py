"""Answer prompts in 3D with the small volumetric model that comes with the project, on a cube that follows the prompts.

The cube is placed around the prompts. Where the object reaches its sides, the cube is widened; where the object is
small in it, the cube is narrowed; then the model is asked once more.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

from baps.blackbox.volumes.bundled_network import SIDE, VolumeNetwork, network_input
from baps.blackbox.volumes.interface import Spacing, VolumeBlackBox, VolumeCapabilities
from baps.blackbox.weights import load_weights
from baps.errors import InputError
from baps.imaging.cube import Cube
from baps.prompts.in_cube import marked_extent, paint_in_cube
from baps.prompts.volume_prompts import (
    Mask,
    VolumeBox,
    VolumePrompt,
    VolumeRegion,
    bounding_box,
)

BUNDLED_VOLUME_WEIGHTS = Path(__file__).parents[1] / "bundled" / "bundled3d.safetensors"
"""Path of the weights of the bundled volumetric model."""

_MARGIN = 1.5
"""Width of the cube, relative to the longest side of what is marked or was found."""

_FIRST_WIDTH = 128.0
"""Width of the cube for clicks, which do not tell the size of the object, mm."""

_FLAT_WIDTH = 1.6
"""Width of the cube for a box or lasso in one slice, relative to its longest side: the object may be longer across."""

_MIN_WIDTH = 20.0
_MAX_LOOKS = 2
_TOUCHES, _SMALL = 0.02, 0.45
"""The object reaches a side where it covers this share of it; it is small if its longest side is this share of the
cube's width."""


class BundledVolumeBlackBox(VolumeBlackBox):
    """The bundled volumetric model.

    A volume that has at most 64 voxels along each axis, all equally far apart, is seen as it is; others in a cube that
    follows the prompts.

    Args:
        network: the network.
        weights_sha256: SHA-256 of its weights.
        device: where it runs.
    """

    def __init__(self, network: VolumeNetwork, weights_sha256: str, device: str = "cpu") -> None:
        super().__init__()
        self._network = network.to(device).eval()
        self._device = device
        self._capabilities = VolumeCapabilities(
            name="bundled3d",
            weights_sha256=weights_sha256,
            points=True,
            boxes=True,
            flat_boxes=True,
            scribbles=True,
            lassos=True,
            negative=True,
            masks=True,
            probabilities=True,
            grid=SIDE,
        )

    @property
    @override
    def capabilities(self) -> VolumeCapabilities:
        return self._capabilities

    @override
    def _predict(
        self, voxels: NDArray[np.generic], spacing: Spacing, prompts: Sequence[VolumePrompt], mask: Mask | None
    ) -> NDArray[np.float32]:
        shape = (voxels.shape[0], voxels.shape[1], voxels.shape[2])
        if max(shape) <= SIDE and max(spacing) < 1.01 * min(spacing):
            middle = np.array([(size - 1) / 2 for size in shape])
            cube = Cube.around(middle, SIDE * spacing[0], spacing, SIDE)
            return cube.insert(self._look(cube, voxels, prompts, mask), shape)
        cube = _first_cube(shape, spacing, prompts, mask)
        for _ in range(_MAX_LOOKS):
            probability = self._look(cube, voxels, prompts, mask)
            better = _better_cube(cube, probability > 0.5, shape, spacing)
            if better is None:
                break
            cube = better
        else:
            probability = self._look(cube, voxels, prompts, mask)
        return cube.insert(probability, shape)

    @torch.inference_mode()
    def _look(
        self, cube: Cube, voxels: NDArray[np.generic], prompts: Sequence[VolumePrompt], mask: Mask | None
    ) -> NDArray[np.float32]:
        """Segment a cube: probability, (S, S, S)."""
        channels = [
            cube.extract(voxels),
            np.zeros((SIDE,) * 3, np.float32) if mask is None else cube.extract(mask, 0.0),
            paint_in_cube(cube, [one for one in prompts if not _is_region(one) and one.include]),
            paint_in_cube(cube, [one for one in prompts if not one.include]),
            paint_in_cube(cube, [one for one in prompts if _is_region(one) and one.include]),
        ]
        inputs = network_input(*(torch.from_numpy(one)[None].to(self._device) for one in channels))
        inputs = inputs.contiguous(memory_format=torch.channels_last_3d)
        return np.asarray(self._network(inputs)[0, 0].sigmoid().cpu().numpy(), np.float32)


def load_bundled_volume_model(
    weights: Path = BUNDLED_VOLUME_WEIGHTS, sha256: str = "", device: str = "cpu"
) -> BundledVolumeBlackBox:
    """Load the bundled volumetric model.

    Args:
        weights: path of the weights; their record lies beside them, as JSON.
        sha256: hash that the weights must have, or "" for any.
        device: where it runs.

    Returns:
        The black box.

    Raises:
        InputError: if the weights cannot be used.
    """
    state, digest = load_weights(weights, sha256)
    try:
        json.loads(weights.with_suffix(".json").read_text())
        network = VolumeNetwork()
        network.load_state_dict({name: value.float() for name, value in state.items()})
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{weights} does not hold the bundled volumetric model with its record ({weights.stem}.json) beside it: "
            f"{error}"
        ) from error
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return BundledVolumeBlackBox(network, digest, device)


def _is_region(prompt: VolumePrompt) -> bool:
    return isinstance(prompt, VolumeBox) or (isinstance(prompt, VolumeRegion) and prompt.lasso)


def _first_cube(
    shape: tuple[int, int, int], spacing: Spacing, prompts: Sequence[VolumePrompt], mask: Mask | None
) -> Cube:
    """Place a cube around all that is marked as the object."""
    low, high = marked_extent(prompts, mask)
    size = float(((high - low + 1) * spacing).max())
    tells_size = mask is not None or any(_is_region(one) and one.include for one in prompts)
    is_flat = mask is None and not any(
        isinstance(one, VolumeBox) and one.flat_axis is None and one.include for one in prompts
    )
    width = (_FLAT_WIDTH if is_flat else _MARGIN) * size if tells_size else max(_FIRST_WIDTH, _MARGIN * size)
    return Cube.around((low + high) / 2, _bounded(width, shape, spacing), spacing, SIDE)


def _bounded(width: float, shape: tuple[int, int, int], spacing: Spacing) -> float:
    """Keep the cube's width between ``_MIN_WIDTH`` and 1.2 times the volume's longest side."""
    longest = float((np.array(shape) * spacing).max())
    return min(max(width, _MIN_WIDTH), 1.2 * longest)


def _better_cube(cube: Cube, found: Mask, shape: tuple[int, int, int], spacing: Spacing) -> Cube | None:
    """Return a cube that fits the object that was found better, or None if this one fits or nothing was found."""
    box = bounding_box(found)
    if box is None:
        return None
    width = cube.side * cube.step[0] * spacing[0]
    sides = [(axis, end) for axis in range(3) for end in (0, -1)]
    reaches = any(found.take(end, axis).mean() > _TOUCHES for axis, end in sides)
    size = max(one.stop - one.start for one in box) / cube.side
    if reaches:
        wanted = _bounded(1.6 * width, shape, spacing)
    elif size < _SMALL:
        wanted = _bounded(1.8 * size * width, shape, spacing)
    else:
        return None
    if 0.9 < wanted / width < 1.1:
        return None
    centre = np.array([(one.start + one.stop - 1) / 2 for one in box]) * cube.step + cube.first
    return Cube.around(centre, wanted, spacing, cube.side)
