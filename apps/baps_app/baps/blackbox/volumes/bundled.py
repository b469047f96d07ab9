"""Answer prompts in 3D with the small volumetric model that comes with the project, on a cube that follows the prompts.

The cube is placed around the prompts. Its size follows that of a box, a lasso or a mask. Clicks do not tell the size of
the object: the network looks at three cubes of different sizes, and the most confident answer counts.

In a whole volume the cube follows the mask that is to be corrected, and the network keeps close to that, also where it
misses most of an object. So where clicks or scribbles say that something is missing, the network answers the prompts
alone as well, and the mean of both answers may add to the mask. It takes nothing away: what was right elsewhere stays.
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
from baps.prompts.in_cube import is_around, marked_extent, paint_marks
from baps.prompts.volume_prompts import (
    Mask,
    Triple,
    VolumeBox,
    VolumePoint,
    VolumePrompt,
    VolumeRegion,
)

BUNDLED_VOLUME_WEIGHTS = Path(__file__).parents[1] / "bundled" / "bundled3d.safetensors"
"""Path of the weights of the bundled volumetric model."""

_MARGIN = 1.5
"""Width of the cube, relative to the longest side of what is marked, where a box, a lasso or a mask tells the size."""

_FLAT_MARGIN = 1.6
"""Likewise for a box or lasso in one slice: the object may be longer across it."""

_LOOKS = (0.8, 0.45, 0.25)
"""Widths of the cubes for clicks, which do not tell the size, relative to the longest side of the volume."""

_MIN_GAIN = 0.005
"""A smaller cube is preferred if the answer in it is more confident by this much, on average over its voxels."""

_MIN_WIDTH = 10.0


class BundledVolumeBlackBox(VolumeBlackBox):
    """The bundled volumetric model.

    A cube of 64 voxels a side, all equally far apart, is seen as it is; others in a cube that follows the prompts.

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
        if shape == (SIDE, SIDE, SIDE) and max(spacing) < 1.01 * min(spacing):
            middle = np.array([(size - 1) / 2 for size in shape])
            cube = Cube.around(middle, SIDE * spacing[0], spacing, SIDE)
            return cube.insert(self._look(cube, voxels, prompts, mask), shape)
        answer = self._find(shape, voxels, spacing, prompts, mask)
        if mask is not None and _something_is_missing(prompts, mask):
            alone = self._find(shape, voxels, spacing, prompts, None)
            answer = np.maximum(answer, (answer + alone) / 2)
        return answer

    def _find(
        self,
        shape: Triple,
        voxels: NDArray[np.generic],
        spacing: Spacing,
        prompts: Sequence[VolumePrompt],
        mask: Mask | None,
    ) -> NDArray[np.float32]:
        """Return the answer of the cube in which the network is most confident, (I, J, K)."""
        best: tuple[float, Cube, NDArray[np.float32]] | None = None
        for cube in _cubes(shape, spacing, prompts, mask):
            probability = self._look(cube, voxels, prompts, mask)
            found = probability > 0.5
            confidence = float(probability[found].mean()) if found.any() else 0.0
            if best is None or confidence > best[0] + _MIN_GAIN:
                best = confidence, cube, probability
        assert best is not None
        return best[1].insert(best[2], shape)

    @torch.inference_mode()
    def _look(
        self, cube: Cube, voxels: NDArray[np.generic], prompts: Sequence[VolumePrompt], mask: Mask | None
    ) -> NDArray[np.float32]:
        """Segment a cube: probability, (S, S, S)."""
        start = np.zeros((SIDE,) * 3, np.float32) if mask is None else cube.extract(mask, 0.0)
        channels = (cube.extract(voxels), start, *paint_marks(cube, prompts))
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


def _cubes(shape: Triple, spacing: Spacing, prompts: Sequence[VolumePrompt], mask: Mask | None) -> list[Cube]:
    """Place cubes around all that is marked as the object, the largest one first."""
    low, high = marked_extent(prompts, mask)
    size = float(((high - low + 1) * spacing).max())
    longest = float((np.array(shape) * spacing).max())
    regions = [one for one in prompts if is_around(one) and one.include]
    if regions or mask is not None:
        flat = mask is None and all(not isinstance(one, VolumeBox) or one.flat_axis is not None for one in regions)
        widths = [(_FLAT_MARGIN if flat else _MARGIN) * size]
    else:
        widths = [max(share * longest, _MARGIN * size) for share in _LOOKS]
    widths = list(dict.fromkeys(max(_MIN_WIDTH, width) for width in widths))
    return [Cube.around((low + high) / 2, width, spacing, SIDE) for width in widths]


def _something_is_missing(prompts: Sequence[VolumePrompt], mask: Mask) -> bool:
    """Return whether a click or a scribble marks the object outside a mask, (I, J, K)."""
    included = [prompt for prompt in prompts if prompt.include]
    clicks = [mask[one.voxel] for one in included if isinstance(one, VolumePoint)]
    scribbles = [
        mask[one.part][one.unpack()].all() for one in included if isinstance(one, VolumeRegion) and not one.lasso
    ]
    return not all(clicks + scribbles)
