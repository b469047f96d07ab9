"""From a volume to the image that a foundation model was trained on, and back to the volume's own voxels.

As published (Silva-Rodriguez et al.): right-anterior-superior orientation, 1.5 mm, Hounsfield units of -175 to 250 as
0 to 1, and only the part that is brighter than the lower end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import CropForeground, Orientation, ScaleIntensityRange, Spacing, SpatialPad, SpatialResample
from numpy.typing import NDArray

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.imaging.windowing import choose_window

_HOUNSFIELD = (-175.0, 250.0)


@dataclass(frozen=True)
class Prepared:
    """A volume as a model takes it.

    Attributes:
        image: (1, H, W, D) float32 in [0, 1]; its axes run towards the patient's right, front and head.
        affine: (4, 4), voxel index of the image to patient position, mm, RAS.
        volume: what it was made of.
    """

    image: torch.Tensor
    affine: NDArray[np.float64]
    volume: Volume

    def mask(self, mask: NDArray[np.bool_]) -> torch.Tensor:
        """A mask (I, J, K) of the volume, on the image's voxels (nearest neighbour): (1, H, W, D) bool.

        Raises:
            InputError: if it has another shape than the volume.
        """
        if mask.shape != self.volume.shape:
            raise InputError(
                f"The label has {mask.shape} voxels, its volume {self.volume.shape}. Give a label on the volume's grid."
            )
        given = _on_grid(mask.astype(np.float32), self.volume.affine)
        return _resampled(given, self.affine, self.image.shape[1:], "nearest") > 0.5

    def back(self, probability: torch.Tensor) -> NDArray[np.float32]:
        """Probabilities (1, H, W, D) of the image, on the volume's voxels (trilinear): (I, J, K), 0 outside of it."""
        given = MetaTensor(probability.float().cpu(), affine=torch.from_numpy(self.affine))
        found: NDArray[np.float32] = _resampled(given, self.volume.affine, self.volume.shape, "bilinear")[0].numpy()
        return found


def prepare(volume: Volume, spacing: float = 1.5, side: int = 96) -> Prepared:
    """A volume as a model takes it.

    CT is told by its scale, see ``choose_window``; of other images, the middle 99 % of the grey values is 0 to 1.

    Args:
        volume: of any orientation.
        spacing: of the image's voxels, mm; 1.5 of the published models.
        side: voxels that each axis has at least; where there are fewer, darkness is put around.

    Raises:
        InputError: if the volume is in colour, or the spacing is no positive number.
    """
    if volume.colour:
        raise InputError(
            "A volumetric model takes grey values, and this volume is in colour. Use another model for it."
        )
    if not 0 < spacing < np.inf:
        raise InputError(f"The spacing must be a positive number of millimetres, not {spacing}.")
    window = choose_window(volume)
    low, high = _HOUNSFIELD if window.source == "ct" else (window.low, window.high)
    image = Orientation("RAS", labels=None)(_on_grid(volume.voxels.astype(np.float32), volume.affine))
    image = Spacing(spacing, dtype=torch.float32)(image)
    image = ScaleIntensityRange(low, high, 0.0, 1.0, clip=True)(image)
    if image.any():
        image = CropForeground()(image)
    image = SpatialPad(side)(image)
    return Prepared(image.as_tensor().contiguous(), np.asarray(image.affine, np.float64), volume)


def _on_grid(voxels: NDArray[np.float32], affine: NDArray[np.float64]) -> MetaTensor:
    return MetaTensor(torch.from_numpy(voxels[None].copy()), affine=torch.from_numpy(affine))


def _resampled(given: MetaTensor, affine: NDArray[np.float64], shape: tuple[int, ...], mode: str) -> torch.Tensor:
    resample = SpatialResample(mode=mode, padding_mode="zeros", dtype=torch.float32)
    found: torch.Tensor = resample(given, torch.from_numpy(affine), shape).as_tensor()
    return found
