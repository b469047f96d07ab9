"""A 3D black box that floods what is as bright as the click, volumes on which it leaks, and adapters of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from baps.adapters.volumes.adapter import ShownVolume, VolumeAdapter
from baps.adapters.volumes.head import VolumeHead
from baps.blackbox.volumes import VolumeBlackBox, VolumeCapabilities
from baps.blackbox.volumes.interface import Spacing
from baps.evaluation.labelled_volumes import LabelledVolume
from baps.imaging.windowing import Window
from baps.prompts.volume_prompts import Mask, VolumeBox, VolumePoint, VolumePrompt

TOLERANCE = 20.0


class FloodBlackBox(VolumeBlackBox):
    """Segment the voxels connected with the clicks whose values differ from theirs by at most ``TOLERANCE``.

    It understands clicks and 3D boxes. A voxel under a negative click is left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self._capabilities = VolumeCapabilities(
            name="flood",
            weights_sha256="f" * 64,
            points=True,
            boxes=True,
            flat_boxes=False,
            scribbles=False,
            lassos=False,
            negative=True,
            masks=False,
            probabilities=True,
            grid=64,
        )

    @property
    def capabilities(self) -> VolumeCapabilities:
        return self._capabilities

    def _predict(
        self, voxels: NDArray[np.generic], spacing: Spacing, prompts: Sequence[VolumePrompt], mask: Mask | None
    ) -> NDArray[np.float32]:
        smooth = ndimage.uniform_filter(voxels.astype(np.float32), 3)
        found = np.zeros(voxels.shape, bool)
        for prompt in prompts:
            if isinstance(prompt, VolumeBox):
                seed = tuple((low + high - 1) // 2 for low, high in zip(prompt.low, prompt.high, strict=True))
            else:
                assert isinstance(prompt, VolumePoint)
                seed = prompt.voxel
            if prompt.include:
                pieces, _ = ndimage.label(np.abs(smooth - smooth[seed]) <= TOLERANCE)
                found |= pieces == pieces[seed]
        for prompt in prompts:
            if isinstance(prompt, VolumePoint) and not prompt.include:
                found[prompt.voxel] = False
        return np.where(found, np.float32(0.95), np.float32(0.05))


def leaky_volume(patient: int, gap: float = 14.0) -> LabelledVolume:
    """Draw an organ beside a tissue that is a little brighter: unadapted, the black box floods both.

    Args:
        patient: number of the patient, which moves and stretches everything.
        gap: how much brighter the tissue is.

    Returns:
        The volume, (48, 44, 24) voxels of 1 x 1 x 2 mm, with the organ.
    """
    random = np.random.default_rng([patient, 11])
    x, y, z = np.meshgrid(*map(np.arange, (48, 44, 24)), indexing="ij")
    middle, radius = (
        np.array([20.0, 22, 12]) + random.normal(size=3),
        np.array([11.0, 10, 6]) * random.uniform(0.85, 1.15),
    )
    organ = ((x - middle[0]) / radius[0]) ** 2 + ((y - middle[1]) / radius[1]) ** 2 + (
        (z - middle[2]) / radius[2]
    ) ** 2 < 1
    grey = np.full(organ.shape, 40.0)
    grey[(x > middle[0] + 0.5 * radius[0]) & (x < 46) & (y > 4) & (y < 40) & (z > 2) & (z < 22)] = 140 + gap
    grey[organ] = 140
    grey += random.normal(size=grey.shape) * 2
    image = ShownVolume(grey.astype(np.float32), (1.0, 1.0, 2.0), Window(0, 255))
    return LabelledVolume(f"patient {patient}", image, organ)


def emptying_adapter() -> VolumeAdapter:
    """Make an adapter whose head removes every voxel of an answer."""
    head = VolumeHead()
    assert head.last.bias is not None
    torch.nn.init.constant_(head.last.bias, -100.0)
    return VolumeAdapter(60.0, head=head.eval())


def flood_record(adapter: VolumeAdapter, **more: Any) -> dict[str, Any]:
    """Return what the record of an adapter of ``FloodBlackBox`` has at least."""
    weights, preprocessing = FloodBlackBox().capabilities.identity
    made_for = {"name": "flood", "weights_sha256": weights, "preprocessing": preprocessing}
    return {"adapter": adapter.to_dict(), "black_box": made_for, "dimension": 3, "verdict": None, **more}


@contextmanager
def flood_as_volume_model() -> Iterator[None]:
    """Let every setting of a 3D black box load ``FloodBlackBox``."""
    with mock.patch("baps.blackbox.volumes.loading.load_volume_black_box", lambda *_, **__: FloodBlackBox()):
        yield
