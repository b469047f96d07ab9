"""Train the tone curve of volumes with two predictions per cube (prompt-space estimation), or by SPSA-GC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from baps.adapters.optimisers.prompt_space import CodeLosses, code_gradient
from baps.adapters.optimisers.spsa_gc import Losses, SpsaGc, SpsaGcSettings
from baps.adapters.volumes.adapter import CubeView, ask_about_cube, cube_around_prompts, shown_side
from baps.adapters.volumes.tone import VolumeTone
from baps.blackbox.volumes import VolumeBlackBox
from baps.evaluation.labelled_volumes import LabelledVolume
from baps.prompts.simulated_volumes import draw_volume_prompts
from baps.prompts.volume_prompts import VolumePrompt
from baps.training.losses import image_losses
from baps.training.query_log import QueryLog
from baps.training.volumes.settings import VolumeSettings

_SLOPE_LR_DIVISOR = 3
"""The weights that depend on the grey level learn this many times slower than the constant."""

_Item = tuple[LabelledVolume, tuple[VolumePrompt, ...], CubeView, torch.Tensor]
"""A volume, prompts on it, the cube around them, and the organ in the cube."""


def train_tone(
    black_box: VolumeBlackBox,
    tone: VolumeTone,
    volumes: Sequence[LabelledVolume],
    width: float,
    settings: VolumeSettings,
    predictions: int,
    query_log: QueryLog,
    run: str,
    report: Callable[[], None] = lambda: None,
) -> None:
    """Train a tone curve in place.

    Args:
        black_box: the model.
        tone: the tone curve, trained or not.
        volumes: volumes to train on.
        width: width of the cube, mm.
        settings: the settings of the adaptation.
        predictions: number of predictions; those that do not fill a step are not made.
        query_log: logs the answers.
        run: name of this run in the log.
        report: called after every step.
    """
    size = min(settings.batch_size, max(1, predictions // 2))
    steps = predictions // (2 * size)
    general, level = [tone.constant], [tone.slope]
    rate = settings.learning_rate
    adam = torch.optim.Adam([{"params": general, "lr": rate}, {"params": level, "lr": rate / _SLOPE_LR_DIVISOR}])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(1, steps), rate / 100)
    spsa = SpsaGc(SpsaGcSettings(directions=1))
    order: list[int] = []
    for step in range(1, steps + 1):
        random = np.random.default_rng([settings.seed, step])
        while len(order) < size:
            order += np.random.default_rng([settings.seed, 7, step]).permutation(len(volumes)).tolist()
        rows, order = order[:size], order[size:]
        items = [_draw(volumes[row], width, shown_side(black_box), settings.prompt, random) for row in rows]
        seed = int(random.integers(2**62))
        generator = torch.Generator().manual_seed(seed)
        levels = torch.tensor([view.level for _, _, view, _ in items])
        key: dict[str, int | str] = {"run": run, "step": step, "seed": seed}
        losses = _code_losses(black_box, items, partial(query_log.get_or_query, key))
        if settings.optimiser == "spsa_gc":
            theta = parameters_to_vector(tone.parameters()).detach()
            vector_to_parameters(spsa.step(theta, _weight_losses(tone, levels, losses), generator), tone.parameters())
        else:
            code = tone.code(levels)
            directions = torch.randn(code.shape, generator=generator)
            gradient = code_gradient(losses, code.detach(), directions, settings.perturbation_radius)
            adam.zero_grad()
            (gradient * code).sum().div(len(code)).backward()
            adam.step()
            schedule.step()
        report()


def _code_losses(
    black_box: VolumeBlackBox, items: Sequence[_Item], get_or_query: Callable[[Callable[[], list[float]]], list[float]]
) -> CodeLosses:
    """Return the function from coefficients (P * B, FUNCTIONS) to losses (P * B,), which asks the black box once."""

    def losses(codes: torch.Tensor) -> torch.Tensor:
        return torch.tensor(get_or_query(lambda: _query_losses(black_box, items, codes)))

    return losses


def _weight_losses(tone: VolumeTone, levels: torch.Tensor, losses: CodeLosses) -> Losses:
    """Return the function from vectors of weights (D, N) to mean losses (D,)."""

    def of_weights(thetas: torch.Tensor) -> torch.Tensor:
        codes = []
        for theta in thetas:
            vector_to_parameters(theta, tone.parameters())
            codes.append(tone.code(levels).detach())
        return losses(torch.cat(codes)).view(len(thetas), -1).mean(1)

    return of_weights


def _draw(volume: LabelledVolume, width: float, side: int, kind: str, random: np.random.Generator) -> _Item:
    prompts = tuple(draw_volume_prompts(volume.target, volume.image.spacing, kind, 1, random))
    cube = cube_around_prompts(prompts, None, width, volume.image.spacing, side)
    target = torch.from_numpy(cube.extract(volume.target, 0.0))
    return volume, prompts, CubeView.of(volume.image, prompts, cube), target


def _query_losses(black_box: VolumeBlackBox, items: Sequence[_Item], codes: torch.Tensor) -> list[float]:
    """Ask about each cube under each of its codes (P * B, FUNCTIONS), those of the first perturbation first."""
    losses = []
    for number, code in enumerate(codes):
        volume, prompts, view, target = items[number % len(items)]
        shown = VolumeTone.apply_code(view.image[None], code[None])[0]
        answer = ask_about_cube(black_box, shown, volume.image.spacing, prompts, view.cube)
        known = torch.from_numpy(volume.known(view.cube))
        losses.append(float(image_losses((answer * known).flatten(1)[None], (target * known).flatten(1)[None])))
    return losses
