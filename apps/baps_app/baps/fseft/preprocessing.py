"""Convert a volume to the image that a foundation model was trained on, and masks back to the volume's voxels.

As published (Silva-Rodriguez et al.): right-anterior-superior orientation, 1.5 mm, Hounsfield units from -175 to 250
scaled to 0 to 1, cropped to what is brighter than the lower end. These are the defaults; each model has its own values.
The models of nnU-Net see the whole field of view, padded with their mean intensity.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import CropForeground, Orientation, ScaleIntensityRange, Spacing, SpatialPad, SpatialResample
from numpy.typing import NDArray

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.imaging.windowing import choose_window

VoxelSize = float | tuple[float, float, float]
"""Size of a voxel along each axis of an image, mm; one number for all axes."""

WindowSides = int | tuple[int, int, int]
"""Sides of a sliding window along each axis of an image, voxels; one number for all axes."""


@dataclass(frozen=True)
class PreparedVolume:
    """A volume as a model takes it.

    Attributes:
        image: (1, H, W, D) float32 in [0, 1]; its axes run where the model's orientation says.
        affine: (4, 4), voxel index of the image to patient position, mm, RAS.
        volume: the volume that it was made from.
    """

    image: torch.Tensor
    affine: NDArray[np.float64]
    volume: Volume

    def mask(self, mask: NDArray[np.bool_]) -> torch.Tensor:
        """Resample a mask of the volume to the image's voxels (nearest neighbour).

        Args:
            mask: (I, J, K), on the volume's voxels.

        Returns:
            (1, H, W, D) bool.

        Raises:
            InputError: if it has another shape than the volume.
        """
        if mask.shape != self.volume.shape:
            raise InputError(
                f"The label has {mask.shape} voxels, its volume {self.volume.shape}. Give a label on the volume's grid."
            )
        source = _to_meta_tensor(mask.astype(np.float32), self.volume.affine)
        return _resample(source, self.affine, self.image.shape[1:], "nearest") > 0.5

    def restore(self, probability: torch.Tensor, floor: float = 0.0) -> NDArray[np.float32]:
        """Resample probabilities of the image to the volume's voxels (trilinear).

        Args:
            probability: (1, H, W, D).
            floor: only the box of the voxels above it is resampled, which is far less work for one organ.

        Returns:
            (I, J, K), 0 outside that box and outside the image.
        """
        probability = probability.float().cpu()
        restored = np.zeros(self.volume.shape, np.float32)
        above = np.argwhere((probability[0] > floor).numpy())
        if not len(above):
            return restored
        # A voxel of the volume that lies between two of the image may be above the floor if one of them is.
        corners = np.array(list(product(*zip(above.min(0) - 1, above.max(0) + 1, strict=True), (1,))))
        indices = (np.linalg.inv(self.volume.affine) @ self.affine @ corners.T)[:3]
        first = np.clip(np.floor(indices.min(1)), 0, self.volume.shape).astype(int)
        last = np.clip(np.ceil(indices.max(1)) + 1, 0, self.volume.shape).astype(int)
        if (last <= first).any():
            return restored
        affine = self.volume.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ first
        source = MetaTensor(probability, affine=torch.from_numpy(self.affine))
        box = tuple(slice(*ends) for ends in zip(first, last, strict=True))
        restored[box] = _resample(source, affine, tuple((last - first).tolist()), "bilinear")[0].numpy()
        return restored


def preprocess(
    volume: Volume,
    spacing: VoxelSize = 1.5,
    side: WindowSides = 96,
    window: tuple[float, float] = (-175.0, 250.0),
    orientation: str = "RAS",
    padding: float | None = None,
) -> PreparedVolume:
    """Convert a volume to the image that a model takes.

    CT is recognised by its values, see ``choose_window``; in other images, the middle 99 % of the grey values is scaled
    to 0 to 1.

    Args:
        volume: a volume of any orientation.
        spacing: size of the image's voxels.
        side: smallest length of an axis, voxels; shorter axes are padded.
        window: Hounsfield units of CT that are scaled to 0 and 1.
        orientation: where the image's axes run to, such as ``RAS``: the patient's right, front and head.
        padding: value (0 to 1) around an image of the whole field of view, or None for an image that is cropped to what
            is brighter than 0, and padded with 0.

    Returns:
        The image, and how it lies in the volume.

    Raises:
        InputError: if the volume is in colour, or the spacing is not a positive number.
    """
    if volume.colour:
        raise InputError(
            "A volumetric model takes grey values, and this volume is in colour. Use another model for it."
        )
    if not all(0 < size < np.inf for size in np.atleast_1d(spacing)):
        raise InputError(f"The spacing must be a positive number of millimetres, not {spacing}.")
    own = choose_window(volume)
    low, high = window if own.source == "ct" else (own.low, own.high)
    image = Orientation(orientation, labels=None)(_to_meta_tensor(volume.voxels.astype(np.float32), volume.affine))
    image = Spacing(spacing, dtype=torch.float32)(image)
    image = ScaleIntensityRange(low, high, 0.0, 1.0, clip=True)(image)
    if padding is None and image.any():
        image = CropForeground()(image)
    image = SpatialPad(side, value=padding or 0.0)(image)
    return PreparedVolume(image.as_tensor().contiguous(), np.asarray(image.affine, np.float64), volume)


def _to_meta_tensor(voxels: NDArray[np.float32], affine: NDArray[np.float64]) -> MetaTensor:
    return MetaTensor(torch.from_numpy(voxels[None].copy()), affine=torch.from_numpy(affine))


def _resample(source: MetaTensor, affine: NDArray[np.float64], shape: tuple[int, ...], mode: str) -> torch.Tensor:
    resample = SpatialResample(mode=mode, padding_mode="zeros", dtype=torch.float32)
    resampled: torch.Tensor = resample(source, torch.from_numpy(affine), shape).as_tensor()
    return resampled
