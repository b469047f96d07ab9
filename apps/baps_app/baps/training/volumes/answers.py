"""Ask a 3D black box about labelled volumes, and keep its answers in cubes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from baps.adapters.volumes.adapter import (
    CubeView,
    VolumeAdapter,
    cube_around_answer,
    cube_around_prompts,
    mask_in_cube,
    shown_side,
)
from baps.blackbox.volumes import VolumeBlackBox
from baps.evaluation.labelled_volumes import LabelledVolume
from baps.imaging.cube import Cube
from baps.prompts.simulated import other_kind
from baps.prompts.simulated_volumes import draw_volume_correction, draw_volume_prompts
from baps.prompts.volume_prompts import Mask, VolumePrompt
from baps.training.query_log import QueryLog

_WIDTH_VARIATION = 0.3
"""Largest change of the logarithm of the cube's width in answers that only a head learns from."""

_OTHER_EVERY = 4
"""Of this many first prompts on a volume, one is of the other kind."""

_MAX_CORRECTIONS = 3


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
        start: the mask that was to be corrected, in the cube, (S, S, S), or None.
    """

    trial: Trial
    cube: Cube
    probability: NDArray[np.uint8]
    whole_dice: float | None = None
    start: NDArray[np.bool_] | None = None

    def view(self) -> CubeView:
        """Look at the cube, as it is without a tone curve.

        Returns:
            The view.
        """
        view = CubeView.of(self.trial.volume.image, self.trial.prompts, self.cube)
        return replace(view, start=None if self.start is None else torch.from_numpy(self.start))

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


def ask_first_prompts(
    black_box: VolumeBlackBox,
    adapter: VolumeAdapter,
    volumes: Sequence[LabelledVolume],
    kind: str,
    predictions: int,
    seed: int,
    query_log: QueryLog,
) -> list[CubeAnswer]:
    """Ask about first prompts, for a head to learn from, in cubes of different widths; some are of the other kind.

    Args:
        black_box: the model.
        adapter: what the black box is shown.
        volumes: the labelled volumes, which take turns.
        kind: kind of most of the prompts, ``click`` or ``box``.
        predictions: number of predictions.
        seed: seed of the prompts and the widths.
        query_log: logs the answers.

    Returns:
        The answers.
    """
    random, answers = np.random.default_rng([seed, 104729]), []
    other = other_kind(kind, black_box.capabilities.points, black_box.capabilities.boxes)
    for number in range(predictions):
        volume = volumes[number % len(volumes)]
        drawn = other if (number // len(volumes)) % _OTHER_EVERY == _OTHER_EVERY - 1 else kind
        prompts = draw_volume_prompts(volume.target, volume.image.spacing, drawn, 1, random)
        factor = float(np.exp(random.uniform(-_WIDTH_VARIATION, _WIDTH_VARIATION)))
        width = None if adapter.width is None else adapter.width * factor
        shown = VolumeAdapter(width, adapter.tone)
        answers.append(_ask(black_box, shown, Trial(volume, tuple(prompts), number), query_log, "first prompts"))
    return answers


def ask_corrections(
    black_box: VolumeBlackBox,
    adapter: VolumeAdapter,
    first: Sequence[CubeAnswer],
    predictions: int,
    seed: int,
    query_log: QueryLog,
) -> list[CubeAnswer]:
    """Ask about masks that a user corrects by clicks, up to ``_MAX_CORRECTIONS`` of them.

    Args:
        black_box: the model.
        adapter: makes the masks.
        first: answers to first prompts, each of which is corrected at most once.
        predictions: maximum number of predictions.
        seed: seed of the clicks.
        query_log: logs the answers.

    Returns:
        The answers; none if the black box does not understand clicks on and beside the object.
    """
    if not (black_box.capabilities.points and black_box.capabilities.negative):
        return []
    random, answers = np.random.default_rng([seed, 15485863]), list[CubeAnswer]()
    for number in random.permutation(len(first)).tolist():
        answer, mask = first[number], None
        volume = answer.trial.volume
        for _ in range(_MAX_CORRECTIONS):
            if len(answers) == predictions:
                return answers
            mask = _mask(answer, adapter, mask)
            click = draw_volume_correction(mask, volume.target, volume.image.spacing, random)
            if click is None:
                break
            trial = Trial(volume, (*answer.trial.prompts, click), len(answers))
            answer = _ask(black_box, adapter, trial, query_log, "corrections", mask)
            answers.append(answer)
    return answers


def _mask(answer: CubeAnswer, adapter: VolumeAdapter, before: Mask | None) -> Mask:
    """Return the mask of an answer on the annotated slices, (I, J, K), as a user sees it with the adapter's head."""
    volume = answer.trial.volume
    probability = adapter.correct(answer.view(), answer.tensor())
    mask = np.zeros(volume.image.shape, bool) if before is None or adapter.width is None else before.copy()
    part = answer.cube.part(mask.shape)
    mask[part] = answer.cube.insert_part(probability.numpy(), part) > 0.5
    return mask if volume.annotated is None else mask & volume.annotated


def _ask(
    black_box: VolumeBlackBox,
    adapter: VolumeAdapter,
    trial: Trial,
    query_log: QueryLog,
    run: str,
    mask: Mask | None = None,
) -> CubeAnswer:
    image = trial.volume.image
    key: dict[str, int | str] = {"run": run, "trial": trial.key}
    if adapter.width is not None:
        cube = cube_around_prompts(trial.prompts, mask, adapter.width, image.spacing, shown_side(black_box))

        def query() -> NDArray[np.uint8]:
            view = CubeView.of(image, trial.prompts, cube, mask)
            return _to_bytes(adapter.ask(black_box, image, trial.prompts, view))

        return CubeAnswer(trial, cube, query_log.get_or_query_masks(key, query), None, _start(mask, cube))
    answers: list[tuple[Cube, NDArray[np.uint8], float]] = []

    def look() -> tuple[Cube, NDArray[np.uint8], float]:
        if not answers:
            probability = black_box.predict(image.voxels, image.spacing, trial.prompts, mask)
            found = cube_around_answer(probability, trial.prompts, image.spacing, shown_side(black_box))
            score = trial.volume.dice(probability > 0.5)
            answers.append((found, _to_bytes(torch.from_numpy(found.extract(probability, 0.0))), score))
        return answers[0]

    def place() -> list[float]:
        found, _, score = look()
        return [*found.first, *found.step, found.side, score]

    x, y, z, dx, dy, dz, side, score = query_log.get_or_query({**key, "part": "cube"}, place)
    answer = query_log.get_or_query_masks({**key, "part": "answer"}, lambda: look()[1])
    cube = Cube((x, y, z), (dx, dy, dz), int(side))
    return CubeAnswer(trial, cube, answer, score, _start(mask, cube))


def _start(mask: Mask | None, cube: Cube) -> NDArray[np.bool_] | None:
    return None if mask is None else mask_in_cube(mask, cube).numpy()


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
