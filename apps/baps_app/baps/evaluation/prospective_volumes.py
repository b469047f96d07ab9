"""Judge adapters of a 3D black box on a volume that was labelled after their training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from baps.adapters.volumes.adapter import VolumeAdapter
from baps.blackbox.volumes.interface import Spacing, VolumeBlackBox, VolumeCapabilities
from baps.errors import InputError
from baps.evaluation.cases import Case
from baps.evaluation.labelled_volumes import load_volumes
from baps.prompts.simulated_volumes import draw_volume_prompts
from baps.prompts.volume_prompts import Mask, VolumePrompt

MAX_PREDICTIONS = 6
"""Maximum number of predictions for a label: three prompts for one adapter, or two for two."""

_SEED = 20_011
"""Seed of the prompts."""


def fixed_prompts(
    capabilities: VolumeCapabilities, target: Mask, spacing: Spacing, count: int = 1
) -> list[VolumePrompt]:
    """Draw first prompts for an organ, always the same: clicks, or 3D boxes if the model understands no clicks.

    Args:
        capabilities: what the model understands.
        target: mask of the organ, (I, J, K); not empty.
        spacing: distance of voxels along each axis, mm.
        count: number of prompts.

    Returns:
        The prompts, in voxels of the mask.

    Raises:
        InputError: if the mask is empty.
    """
    kind = "click" if capabilities.points else "box"
    return draw_volume_prompts(target, spacing, kind, count, np.random.default_rng(_SEED))


def score_volume_adapters(
    black_box: VolumeBlackBox,
    adapters: Mapping[str, VolumeAdapter],
    case: Case,
    max_predictions: int = MAX_PREDICTIONS,
    wait: Callable[[], None] = lambda: None,
    folder: Path | None = None,
) -> dict[str, float]:
    """Compare adapters with the unadapted model on a case, each with the same prompts.

    Args:
        black_box: the model.
        adapters: the adapters by name.
        case: the volume and the organ. If only some slices were annotated, only these count.
        max_predictions: maximum number of predictions; one is made for each prompt, adapter and the unadapted model.
        wait: called before every prediction.
        folder: folder on whose disk voxels are kept meanwhile, or None for the folder of temporary files.

    Returns:
        Mean difference of Dice (-1 to 1) by name; empty if there are too few predictions for one prompt.

    Raises:
        InputError: if the case cannot be used.
        BapsError: if the model does not answer.
    """
    count = max_predictions // (len(adapters) + 1)
    if not adapters or not count:
        return {}
    volumes, skipped = load_volumes([case], folder)
    if not volumes:
        raise InputError(next(iter(skipped.values())))
    (volume,) = volumes[case.patient]
    prompts = fixed_prompts(black_box.capabilities, volume.target, volume.image.spacing, count)

    def mean_dice(adapter: VolumeAdapter) -> float:
        scores = []
        for prompt in prompts:
            wait()
            scores.append(volume.dice(adapter.predict(black_box, volume.image, [prompt]) > 0.5))
        return float(np.mean(scores))

    unadapted = mean_dice(VolumeAdapter())
    return {name: mean_dice(adapter) - unadapted for name, adapter in adapters.items()}
