"""Ask a 3D black box about labelled volumes, and keep its answers in cubes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from baps.adapters.volumes.adapter import (
    CubeView,
    VolumeAdapter,
    cube_around_answer,
    cube_around_prompts,
    shown_side,
)
from baps.blackbox.volumes import VolumeBlackBox
from baps.evaluation.labelled_volumes import LabelledVolume
from baps.imaging.cube import Cube
from baps.prompts.volume_prompts import VolumePrompt
from baps.training.query_log import QueryLog


@dataclass(frozen=True)
class Trial:
    """A prompt on a labelled volume.

    Attributes:
        volume: the volume.
        prompts: the prompts, in its voxels.
        key: names the trial in the query log.
    """

    volume: LabelledVolume
    prompts: tuple[VolumePrompt, ...]
    key: int


@dataclass(frozen=True)
class CubeAnswer:
    """An answer of the black box, in a cube.

    Attributes:
        trial: what was asked.
        cube: the cube.
        probability: the answer, (S, S, S) uint8, 0 to 255.
        whole_dice: Dice of the answer in the whole volume, if the black box saw the whole volume.
    """

    trial: Trial
    cube: Cube
    probability: NDArray[np.uint8]
    whole_dice: float | None = None

    def view(self) -> CubeView:
        """Look at the cube, as it is without a tone curve.

        Returns:
            The view.
        """
        return CubeView.of(self.trial.volume.image, self.trial.prompts, self.cube)

    def target(self) -> torch.Tensor:
        """Resample the mask of the organ in the cube.

        Returns:
            Share of the organ, (S, S, S) float.
        """
        return torch.from_numpy(self.cube.extract(self.trial.volume.target, 0.0))

    def known(self) -> torch.Tensor:
        """Return where the mask of the organ is known.

        Returns:
            0 or 1, (1, 1, S).
        """
        return torch.from_numpy(self.trial.volume.known(self.cube))[None, None]

    def tensor(self) -> torch.Tensor:
        """Convert the answer to probabilities.

        Returns:
            (S, S, S) float.
        """
        return torch.tensor(self.probability).float() / 255


def ask(
    black_box: VolumeBlackBox, adapter: VolumeAdapter, trials: Sequence[Trial], query_log: QueryLog, run: str
) -> list[CubeAnswer]:
    """Ask the black box about trials, without the head.

    Args:
        black_box: the model.
        adapter: what the black box is shown.
        trials: what is asked; one prediction each.
        query_log: logs the answers.
        run: name of this run in the log.

    Returns:
        The answers.
    """
    return [_ask(black_box, adapter, trial, query_log, run) for trial in trials]


def _ask(black_box: VolumeBlackBox, adapter: VolumeAdapter, trial: Trial, query_log: QueryLog, run: str) -> CubeAnswer:
    image = trial.volume.image
    key: dict[str, int | str] = {"run": run, "trial": trial.key}
    if adapter.width is not None:
        cube = cube_around_prompts(trial.prompts, None, adapter.width, image.spacing, shown_side(black_box))

        def query() -> NDArray[np.uint8]:
            return _to_bytes(adapter.ask(black_box, image, trial.prompts, CubeView.of(image, trial.prompts, cube)))

        return CubeAnswer(trial, cube, query_log.get_or_query_masks(key, query))
    answers: list[tuple[Cube, NDArray[np.uint8], float]] = []

    def look() -> tuple[Cube, NDArray[np.uint8], float]:
        if not answers:
            probability = black_box.predict(image.voxels, image.spacing, trial.prompts)
            found = cube_around_answer(probability, trial.prompts, image.spacing, shown_side(black_box))
            score = trial.volume.dice(probability > 0.5)
            answers.append((found, _to_bytes(torch.from_numpy(found.extract(probability, 0.0))), score))
        return answers[0]

    def place() -> list[float]:
        found, _, score = look()
        return [*found.first, *found.step, found.side, score]

    x, y, z, dx, dy, dz, side, score = query_log.get_or_query({**key, "part": "cube"}, place)
    answer = query_log.get_or_query_masks({**key, "part": "answer"}, lambda: look()[1])
    return CubeAnswer(trial, Cube((x, y, z), (dx, dy, dz), int(side)), answer, score)


def dice_in_volume(answer: CubeAnswer, probability: torch.Tensor) -> float:
    """Compute the Dice of a mask in a cube against the organ in the whole volume.

    Args:
        answer: what was asked, and the cube.
        probability: the answer in the cube, maybe corrected, (S, S, S).

    Returns:
        Dice, 0 to 1.
    """
    volume = answer.trial.volume
    part = answer.cube.part(volume.image.shape)
    return volume.dice(answer.cube.insert_part(probability.numpy(), part) > 0.5, part)


def _to_bytes(probability: torch.Tensor) -> NDArray[np.uint8]:
    return np.asarray((255 * probability).round().to(torch.uint8).numpy())
