"""Define the adapter of a 3D black box, and segment volumes with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from baps.adapters.volumes.features import volume_head_features
from baps.adapters.volumes.head import VolumeHead
from baps.adapters.volumes.tone import VolumeTone
from baps.blackbox.volumes import VolumeBlackBox
from baps.blackbox.volumes.interface import Spacing
from baps.errors import InputError
from baps.imaging.cube import Cube
from baps.imaging.volume import Volume
from baps.imaging.windowing import Window
from baps.prompts.in_cube import marked_extent, move_to_cube, paint_marks
from baps.prompts.volume_prompts import Mask, VolumePrompt, bounding_box

_SIDE = 128
"""Number of voxels along each side of the cube that is shown to a model without a grid of its own."""

_MARGIN = 2.0
"""Width of the head's cube, relative to the answer, where the black box sees the whole volume."""

_MIN_WIDTH = 16.0
_MAX_WIDTH = 2000.0


@dataclass(frozen=True)
class ShownVolume:
    """A volume as it is shown to a 3D black box.

    Attributes:
        voxels: grey values, (I, J, K).
        spacing: distance of voxels along each axis, mm.
        window: the window of the volume.
    """

    voxels: NDArray[np.generic]
    spacing: Spacing
    window: Window

    @classmethod
    def of(cls, volume: Volume, window: Window) -> ShownVolume:
        """Show a volume.

        Args:
            volume: the volume.
            window: its window.

        Returns:
            The volume as it is shown.

        Raises:
            InputError: if it has colours.
        """
        if volume.colour:
            raise InputError("The volume has colours; a 3D model takes grey values.")
        return cls(volume.voxels, volume.spacing, window)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along each axis."""
        i, j, k = self.voxels.shape
        return i, j, k


@dataclass(frozen=True)
class CubeView:
    """A cube of a volume with the prompts in it.

    Attributes:
        cube: where it lies.
        image: windowed grey values in [0, 1], (S, S, S).
        positive: 1 where clicks and scribbles mark the object, (S, S, S).
        negative: likewise, as not the object.
        region: 1 inside boxes and lassos.
        start: the mask to be corrected, (S, S, S) bool, or None.
    """

    cube: Cube
    image: torch.Tensor
    positive: torch.Tensor
    negative: torch.Tensor
    region: torch.Tensor
    start: torch.Tensor | None = None

    @classmethod
    def of(cls, volume: ShownVolume, prompts: Sequence[VolumePrompt], cube: Cube, mask: Mask | None = None) -> CubeView:
        """Look at a cube.

        Args:
            volume: the volume.
            prompts: prompts in voxels of the volume.
            cube: the cube.
            mask: a mask to be corrected, (I, J, K), or None.

        Returns:
            The view.
        """
        values = volume.window.apply(cube.extract(volume.voxels)) / 255
        positive, negative, region = (torch.from_numpy(one) for one in paint_marks(cube, prompts))
        start = None if mask is None else mask_in_cube(mask, cube)
        return cls(cube, torch.from_numpy(values.astype(np.float32)), positive, negative, region, start)

    @property
    def level(self) -> float:
        """Grey level at the clicks; without any, in the middle half of the region; in [0, 1]."""
        if self.positive.any():
            marks = F.max_pool3d(self.positive[None, None], 3, 1, 1)[0, 0]
        else:
            marks = torch.zeros_like(self.region)
            box = bounding_box(self.region.numpy() > 0)
            if box is None:
                return 0.5
            middle = [slice((3 * s.start + s.stop) // 4, (s.start + 3 * s.stop + 3) // 4) for s in box]
            marks[tuple(middle)] = 1
        return float((self.image * marks).sum() / marks.sum())

    def features(self, probability: torch.Tensor, image: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the input of the head.

        Args:
            probability: the answer of the black box in the cube, (S, S, S).
            image: grey values in [0, 1] instead of its own, (S, S, S).

        Returns:
            Features, (1, VOLUME_FEATURES, G, G, G).
        """
        shown = self.image if image is None else image
        start = None if self.start is None else self.start[None]
        return volume_head_features(
            shown[None], probability[None], self.positive[None], self.negative[None], self.region[None], start
        )


class VolumeAdapter:
    """Everything that is between a volume with prompts and a 3D black box.

    Args:
        width: width of the cube around the prompts that the black box is shown, mm; None if it sees the whole volume.
        tone: the tone curve of the cube, or None.
        head: corrects the answers, or None.

    Raises:
        InputError: if the width is not positive, or there is a tone curve without a cube.
    """

    def __init__(
        self, width: float | None = None, tone: VolumeTone | None = None, head: VolumeHead | None = None
    ) -> None:
        if width is not None and not 0 < width < _MAX_WIDTH:
            raise InputError(f"The width of the cube must be from 0 to {_MAX_WIDTH:.0f} mm, not {width}.")
        if tone is not None and width is None:
            raise InputError("A tone curve is defined in a cube around the prompts. Give its width.")
        self.width, self.tone, self.head = width, tone, head

    def predict(
        self,
        black_box: VolumeBlackBox,
        volume: ShownVolume,
        prompts: Sequence[VolumePrompt],
        mask: Mask | None = None,
    ) -> NDArray[np.float32]:
        """Segment an object.

        Args:
            black_box: the model.
            volume: the volume.
            prompts: prompts in voxels of the volume.
            mask: a mask to be corrected, (I, J, K), or None.

        Returns:
            Probability of the object, (I, J, K). Outside the cube it is that of the mask to be corrected.

        Raises:
            InputError: as ``VolumeBlackBox.predict``.
        """
        if self.width is None:
            probability = black_box.predict(volume.voxels, volume.spacing, prompts, mask)
            if self.head is None or not ((probability > 0.5).any() or any(prompt.include for prompt in prompts)):
                return probability  # All of a mask was removed: there is nothing to look at.
            cube = cube_around_answer(probability, prompts, volume.spacing, shown_side(black_box))
            answer, view = torch.from_numpy(cube.extract(probability, 0.0)), CubeView.of(volume, prompts, cube, mask)
        else:
            black_box.check(volume.voxels, volume.spacing, prompts, mask)  # It sees the prompts in the cube only.
            cube = cube_around_prompts(prompts, mask, self.width, volume.spacing, shown_side(black_box))
            probability = np.zeros(volume.shape, np.float32) if mask is None else mask.astype(np.float32)
            view = CubeView.of(volume, prompts, cube, mask)
            answer = self.ask(black_box, volume, prompts, view)
        part = cube.part(volume.shape)
        probability[part] = cube.insert_part(self.correct(view, answer).numpy(), part)
        return probability

    def correct(self, view: CubeView, answer: torch.Tensor) -> torch.Tensor:
        """Correct an answer of the black box by the head, if there is one.

        Args:
            view: the cube.
            answer: probability of the object in the cube, (S, S, S).

        Returns:
            Probability of the object in the cube, (S, S, S).
        """
        return answer if self.head is None else self.head.refine(view.features(answer), answer[None])[0]

    def ask(
        self,
        black_box: VolumeBlackBox,
        volume: ShownVolume,
        prompts: Sequence[VolumePrompt],
        view: CubeView,
    ) -> torch.Tensor:
        """Ask the black box about a cube, without the head.

        Args:
            black_box: the model.
            volume: the volume.
            prompts: prompts in voxels of the volume.
            view: the cube with the prompts and the mask to be corrected in it.

        Returns:
            Probability of the object in the cube, (S, S, S).
        """
        shown = view.image
        if self.tone is not None:
            with torch.no_grad():
                code = self.tone.code(torch.tensor([view.level]))
            shown = VolumeTone.apply_code(view.image[None], code)[0]
        return ask_about_cube(black_box, shown, volume.spacing, prompts, view.cube, view.start)

    def to_dict(self) -> dict[str, Any]:
        """Describe the adapter for the record; ``volume_adapter_from_record`` builds an untrained copy from it.

        Returns:
            ``width``, and whether there are ``tone`` and ``head``.
        """
        return {"width": self.width, "tone": self.tone is not None, "head": self.head is not None}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Collect all weights.

        Returns:
            The tensors by name.
        """
        return {
            f"{name}.{key}": value for name, part in self._parts().items() for key, value in part.state_dict().items()
        } or {"empty": torch.zeros(1)}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Set all weights.

        Args:
            state: the tensors by name.
        """
        for name, part in self._parts().items():
            prefix = f"{name}."
            part.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
            part.eval()

    def _parts(self) -> dict[str, nn.Module]:
        return {name: part for name, part in (("tone", self.tone), ("head", self.head)) if part is not None}


def volume_adapter_from_record(record: Mapping[str, Any]) -> VolumeAdapter:
    """Build an untrained adapter from its description.

    Args:
        record: what ``VolumeAdapter.to_dict`` returned.

    Returns:
        The adapter.
    """
    width = record["width"]
    return VolumeAdapter(
        None if width is None else float(width),
        VolumeTone() if record["tone"] else None,
        VolumeHead() if record["head"] else None,
    )


def shown_side(black_box: VolumeBlackBox) -> int:
    """Return how finely a cube is shown to a 3D black box.

    Args:
        black_box: the model.

    Returns:
        Number of voxels along each side: the model's own grid, or 128.
    """
    return black_box.capabilities.grid or _SIDE


def cube_around_prompts(
    prompts: Sequence[VolumePrompt], mask: Mask | None, width: float, spacing: Spacing, side: int
) -> Cube:
    """Place a cube of a given width around what is marked as the object; wider if it does not fit.

    Args:
        prompts: prompts in voxels of the volume.
        mask: a mask of the object, or None.
        width: width, mm.
        spacing: distance of voxels along each axis, mm.
        side: number of voxels along each side, see ``shown_side``.

    Returns:
        The cube.
    """
    low, high = marked_extent(prompts, mask)
    needed = 1.1 * float(((high - low + 1) * spacing).max())
    return Cube.around((low + high) / 2, max(width, needed), spacing, side)


def cube_around_answer(
    probability: NDArray[np.float32], prompts: Sequence[VolumePrompt], spacing: Spacing, side: int
) -> Cube:
    """Place the head's cube around an answer, and around the prompts if the answer is empty.

    Args:
        probability: the answer, (I, J, K).
        prompts: prompts in voxels of the volume.
        spacing: distance of voxels along each axis, mm.
        side: number of voxels along each side, see ``shown_side``.

    Returns:
        The cube.
    """
    low, high = marked_extent(prompts, probability > 0.5)
    width = _MARGIN * float(((high - low + 1) * spacing).max())
    return Cube.around((low + high) / 2, max(width, _MIN_WIDTH), spacing, side)


def mask_in_cube(mask: Mask, cube: Cube) -> torch.Tensor:
    """Resample a mask in a cube. A mask that is smaller than a voxel of the cube remains.

    Args:
        mask: the mask, (I, J, K).
        cube: the cube.

    Returns:
        The mask in the cube, (S, S, S) bool.
    """
    share = torch.from_numpy(cube.extract(mask, 0.0))
    return share > min(0.5, float(share.max()) / 2)


def ask_about_cube(
    black_box: VolumeBlackBox,
    shown: torch.Tensor,
    spacing: Spacing,
    prompts: Sequence[VolumePrompt],
    cube: Cube,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """Ask a 3D black box about a cube.

    Args:
        black_box: the model.
        shown: grey values in [0, 1], (S, S, S).
        spacing: distance of the volume's voxels along each axis, mm.
        prompts: prompts in voxels of the volume.
        cube: the cube.
        start: a mask to be corrected in the cube, (S, S, S), or None.

    Returns:
        Probability of the object in the cube, (S, S, S). Where all grey values are equal, nothing can be seen: the
            model is not asked, and the answer is the mask to be corrected, or 0.
    """
    moved = [inside for prompt in prompts if (inside := move_to_cube(prompt, cube)) is not None]
    if shown.min() == shown.max():  # Some models refuse such an image, which would end a training.
        return torch.zeros_like(shown) if start is None else start.to(shown.dtype)
    distance = cube.step[0] * spacing[0]
    mask = None if start is None else start.numpy()
    answer = black_box.predict((255 * shown).numpy(), (distance, distance, distance), moved, mask)
    return torch.from_numpy(answer)
