"""The training loop of few-shot adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint as recompute

from baps.errors import InputError
from baps.fseft.adapters import FewShotAdapter
from baps.fseft.fitting.checkpoint import Checkpoint
from baps.fseft.fitting.crops import CubeSampler
from baps.fseft.fitting.draw import Draw
from baps.fseft.fitting.example import Example, mean_organ_size
from baps.fseft.fitting.plateau import Plateau
from baps.fseft.fitting.points import PointSampler
from baps.fseft.fitting.settings import FitSettings
from baps.fseft.losses import dice_loss, size_penalty, soft_size

_TOGETHER = 2
"""Number of images whose activations are in memory at a time; six cubes of 96 voxels would need more than most have."""


@dataclass(frozen=True)
class FitResult:
    """The course of a fit.

    Attributes:
        losses: mean loss of the steps of each epoch.
        dices: mean soft Dice (0 to 1) of the steps of each epoch.
        penalties: mean penalty of each epoch with unlabelled volumes.
    """

    losses: tuple[float, ...]
    dices: tuple[float, ...]
    penalties: tuple[float, ...]


def fit(
    adapter: FewShotAdapter,
    examples: Sequence[Example],
    settings: FitSettings,
    unlabelled: Sequence[torch.Tensor] = (),
    progress: Callable[[int, float], None] = lambda epoch, dice: None,
    wait: Callable[[], None] = lambda: None,
    checkpoint: Checkpoint | None = None,
) -> FitResult:
    """Train an adapter in place, on its device.

    The optimiser is AdamW without weight decay, on the soft Dice (plus cross-entropy if single voxels are drawn). The
    fit ends after ``settings.epochs`` or at a ``Plateau``. With unlabelled volumes (constrained transductive
    inference), each epoch of the second half ends with a step on their sizes, and plateaus count in that half only.

    Args:
        adapter: the adapter, see ``build_adapter``.
        examples: the labelled volumes, on any device.
        settings: the settings of the fit.
        unlabelled: inputs of the adapter for whole unlabelled volumes, because the size is that of the whole organ.
        progress: called after every epoch with the number of epochs and the last soft Dice; it may raise to stop the
            fit.
        wait: called before every step; the training waits for it.
        checkpoint: saves the fit while it runs, and an interrupted fit continues from it; the result is the same, bit
            by bit on a CPU.

    Returns:
        The course of the fit.

    Raises:
        InputError: if there is no example, or the size of the organ is needed and unknown.
    """
    if not examples:
        raise InputError("There is no labelled volume to train on. Label at least one.")
    expected = mean_organ_size(examples) if unlabelled else 0.0
    generator = torch.Generator().manual_seed(settings.seed)
    volumes = [
        PointSampler(example, settings.points)
        if settings.points
        else CubeSampler(example, settings.crop, settings.crops)
        for example in examples
    ]
    optimiser = torch.optim.AdamW(adapter.trainable_parameters().values(), lr=settings.learning_rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.epochs)
    plateau = Plateau()
    losses: list[float] = []
    dices: list[float] = []
    penalties: list[float] = []
    finished = False
    if checkpoint and (state := checkpoint.load()):
        adapter.load_state_dict(state.pop("adapter"))
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        generator.set_state(state["generator"])
        losses, dices, penalties, finished = (state[name] for name in ("losses", "dices", "penalties", "ended"))
        plateau = Plateau(losses[settings.epochs // 2 if unlabelled else 0 :])
    adapter.train()
    while not finished:
        epoch = len(losses)
        constrained = bool(unlabelled) and epoch >= settings.epochs // 2
        steps = []
        order = torch.randperm(len(volumes) * settings.steps, generator=generator) % len(volumes)
        for index in order.tolist():
            wait()
            steps.append(_step(adapter, optimiser, volumes[index].draw(generator), settings, generator))
        mean_loss, mean_dice = (sum(values) / len(steps) for values in zip(*steps, strict=True))
        losses.append(mean_loss)
        dices.append(mean_dice)
        if constrained:
            penalties.append(_size_step(adapter, optimiser, unlabelled, expected, settings))
        schedule.step()
        converged = (constrained or not unlabelled) and plateau.reached(losses[-1])
        finished = converged or epoch + 1 == settings.epochs
        if checkpoint and (finished or checkpoint.due):
            checkpoint.save(
                {
                    "adapter": adapter.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "schedule": schedule.state_dict(),
                    "generator": generator.get_state(),
                    "losses": losses,
                    "dices": dices,
                    "penalties": penalties,
                    "ended": finished,
                }
            )
        progress(epoch + 1, dices[-1])
    adapter.eval()
    return FitResult(tuple(losses), tuple(dices), tuple(penalties))


def _step(
    adapter: FewShotAdapter,
    optimiser: torch.optim.Optimizer,
    draws: Sequence[Draw],
    settings: FitSettings,
    generator: torch.Generator,
) -> tuple[float, float]:
    """Make one step; return its loss and its soft Dice."""
    device = next(adapter.parameters()).device
    inputs = torch.stack([draw.inputs for draw in draws]).to(device).float()
    target = torch.stack([draw.target for draw in draws]).to(device).float()
    weights = torch.stack([draw.weights for draw in draws]).to(device)
    logits = _forward(adapter, adapter.augment(inputs, generator))
    overlap = loss = dice_loss(logits.sigmoid(), target, weights)
    if settings.points:
        loss = loss + functional.binary_cross_entropy_with_logits(logits, target)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.item(), 1 - overlap.item()


def _forward(adapter: FewShotAdapter, inputs: torch.Tensor) -> torch.Tensor:
    """Run the adapter; what the backward pass needs of many images is computed again there, a few at a time."""
    parts = inputs.split(_TOGETHER)
    if adapter.input_kind != "images" or len(parts) == 1:
        logits: torch.Tensor = adapter(inputs)
        return logits
    return torch.cat([recompute(adapter, part, use_reentrant=False) for part in parts])


def _size_step(
    adapter: FewShotAdapter,
    optimiser: torch.optim.Optimizer,
    unlabelled: Sequence[torch.Tensor],
    expected: float,
    settings: FitSettings,
) -> float:
    """Make one step on the mean penalty of all unlabelled volumes; gradients of one volume at a time are in memory."""
    device = next(adapter.parameters()).device
    total = 0.0
    optimiser.zero_grad()
    for inputs in unlabelled:
        size = soft_size(adapter(inputs[None].to(device).float()).sigmoid())
        penalty = size_penalty(size, expected, settings.margin) / len(unlabelled)
        (settings.weight * penalty).backward()
        total += penalty.item()
    if total > 0:  # Without a gradient, AdamW would still move along its momentum.
        optimiser.step()
    return total
