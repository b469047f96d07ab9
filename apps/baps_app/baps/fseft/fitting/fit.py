"""The training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from baps.errors import InputError
from baps.fseft.adapters import FewShotAdapter
from baps.fseft.fitting.checkpoint import Checkpoint
from baps.fseft.fitting.crops import Crops
from baps.fseft.fitting.draw import Draw
from baps.fseft.fitting.example import Example, mean_size
from baps.fseft.fitting.plateau import Plateau
from baps.fseft.fitting.points import Points
from baps.fseft.fitting.settings import FitSettings
from baps.fseft.losses import dice_loss, size_penalty, soft_size


@dataclass(frozen=True)
class Fitted:
    """How a fit went.

    Attributes:
        losses: of each epoch, the mean of its steps.
        dices: likewise the soft Dice.
        penalties: of each epoch with query volumes, their mean penalty.
    """

    losses: tuple[float, ...]
    dices: tuple[float, ...]
    penalties: tuple[float, ...]


def fit(
    adapter: FewShotAdapter,
    examples: Sequence[Example],
    settings: FitSettings,
    queries: Sequence[torch.Tensor] = (),
    told: Callable[[int, float], None] = lambda epoch, dice: None,
    pause: Callable[[], None] = lambda: None,
    checkpoint: Checkpoint | None = None,
) -> Fitted:
    """Train an adapter, in place, on the device that it is on.

    AdamW without weight decay on the soft Dice (where single voxels are drawn, on the cross-entropy beside it); ends
    after ``settings.epochs`` or at a ``Plateau``. With query volumes (constrained transductive inference), from the
    middle on each epoch ends with a step on their sizes, and no plateau is looked for before.

    Args:
        adapter: see ``build_adapter``.
        examples: what the adapter reads of the labelled volumes, on any device.
        settings: see there.
        queries: what it reads of volumes that are to be segmented, all of each, as the size is the whole organ's.
        told: called after every epoch with how many there were, and the last one's soft Dice; may raise, to stop.
        pause: called before every step; the training waits as long as it takes.
        checkpoint: where the fit is kept while it runs, and goes on from if it was broken off; the result is the same,
            bit by bit on a CPU.

    Raises:
        InputError: if there is no example, or the organ's size is needed and not known.
    """
    if not examples:
        raise InputError("There is no labelled volume to learn from. Label at least one.")
    expected = mean_size(examples) if queries else 0.0
    generator = torch.Generator().manual_seed(settings.seed)
    volumes = [
        Points(example, settings.points) if settings.points else Crops(example, settings.crop, settings.crops)
        for example in examples
    ]
    optimiser = torch.optim.AdamW(adapter.trained().values(), lr=settings.learning_rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.epochs)
    plateau = Plateau()
    losses: list[float] = []
    dices: list[float] = []
    penalties: list[float] = []
    ended = False
    if checkpoint and (kept := checkpoint.read()):
        adapter.load_state_dict(kept.pop("adapter"))
        optimiser.load_state_dict(kept["optimiser"])
        schedule.load_state_dict(kept["schedule"])
        generator.set_state(kept["generator"])
        losses, dices, penalties, ended = (kept[name] for name in ("losses", "dices", "penalties", "ended"))
        plateau = Plateau(losses[settings.epochs // 2 if queries else 0 :])
    adapter.train()
    while not ended:
        epoch = len(losses)
        constrained = bool(queries) and epoch >= settings.epochs // 2
        steps = []
        order = torch.randperm(len(volumes) * settings.steps, generator=generator) % len(volumes)
        for index in order.tolist():
            pause()
            steps.append(_step(adapter, optimiser, volumes[index].draw(generator), settings, generator))
        mean_loss, mean_dice = (sum(values) / len(steps) for values in zip(*steps, strict=True))
        losses.append(mean_loss)
        dices.append(mean_dice)
        if constrained:
            penalties.append(_size_step(adapter, optimiser, queries, expected, settings))
        schedule.step()
        still = (constrained or not queries) and plateau.reached(losses[-1])
        ended = still or epoch + 1 == settings.epochs
        if checkpoint and (ended or checkpoint.due):
            checkpoint.keep(
                {
                    "adapter": adapter.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "schedule": schedule.state_dict(),
                    "generator": generator.get_state(),
                    "losses": losses,
                    "dices": dices,
                    "penalties": penalties,
                    "ended": ended,
                }
            )
        told(epoch + 1, dices[-1])
    adapter.eval()
    return Fitted(tuple(losses), tuple(dices), tuple(penalties))


def _step(
    adapter: FewShotAdapter,
    optimiser: torch.optim.Optimizer,
    draws: Sequence[Draw],
    settings: FitSettings,
    generator: torch.Generator,
) -> tuple[float, float]:
    """Its loss and its soft Dice."""
    device = next(adapter.parameters()).device
    inputs = torch.stack([draw.inputs for draw in draws]).to(device).float()
    truth = torch.stack([draw.truth for draw in draws]).to(device).float()
    weights = torch.stack([draw.weights for draw in draws]).to(device)
    logits = adapter(adapter.varied(inputs, generator))
    overlap = loss = dice_loss(logits.sigmoid(), truth, weights)
    if settings.points:
        loss = loss + functional.binary_cross_entropy_with_logits(logits, truth)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.item(), 1 - overlap.item()


def _size_step(
    adapter: FewShotAdapter,
    optimiser: torch.optim.Optimizer,
    queries: Sequence[torch.Tensor],
    expected: float,
    settings: FitSettings,
) -> float:
    """One step on the mean penalty of all query volumes; one volume at a time is held with its gradient."""
    device = next(adapter.parameters()).device
    total = 0.0
    optimiser.zero_grad()
    for query in queries:
        size = soft_size(adapter(query[None].to(device).float()).sigmoid())
        penalty = size_penalty(size, expected, settings.margin) / len(queries)
        (settings.weight * penalty).backward()
        total += penalty.item()
    if total > 0:  # AdamW would carry on along its momentum.
        optimiser.step()
    return total
