"""The training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from baps.errors import InputError

from ..adapters import FewShotAdapter
from ..losses import dice_loss, size_penalty, soft_size
from .crops import Crops
from .example import Example, Query, mean_size
from .plateau import Plateau
from .settings import FitSettings


@dataclass(frozen=True)
class Fitted:
    """How a fit went.

    Attributes:
        losses: of each epoch, the mean Dice loss of its steps.
        penalties: of each epoch with query volumes, their mean penalty.
    """

    losses: tuple[float, ...]
    penalties: tuple[float, ...]


def fit(
    adapter: FewShotAdapter,
    examples: Sequence[Example],
    settings: FitSettings,
    queries: Sequence[Query] = (),
    told: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Fitted:
    """Train an adapter, in place, on the device that it is on.

    AdamW without weight decay on the soft Dice; ends after ``settings.epochs`` or at a ``Plateau``. With query volumes
    (constrained transductive inference), from the middle on each epoch ends with a step on their sizes, and no plateau
    is looked for before.

    Args:
        adapter: see ``build_adapter``.
        examples: what the adapter reads of the labelled volumes, on any device.
        settings: see there.
        queries: what it reads of volumes that are to be segmented.
        told: called after every epoch with how many there were, and the last one's loss; may raise, to stop.

    Raises:
        InputError: if there is no example, or the organ's size is needed and not known.
    """
    if not examples:
        raise InputError("There is no labelled volume to learn from. Label at least one.")
    expected = mean_size(examples) if queries else 0.0
    generator = torch.Generator().manual_seed(settings.seed)
    volumes = [Crops(example, settings.crop) for example in examples]
    optimiser = torch.optim.AdamW(adapter.trained().values(), lr=settings.rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.epochs)
    plateau = Plateau()
    losses: list[float] = []
    penalties: list[float] = []
    adapter.train()
    for epoch in range(settings.epochs):
        constrained = bool(queries) and epoch >= settings.epochs // 2
        steps = [
            _step(adapter, optimiser, batch, settings, generator) for batch in _batches(volumes, settings, generator)
        ]
        losses.append(sum(steps) / len(steps))
        if constrained:
            penalties.append(_size_step(adapter, optimiser, queries, expected, settings))
        schedule.step()
        told(epoch + 1, losses[-1])
        if (constrained or not queries) and plateau.reached(losses[-1]):
            break
    adapter.eval()
    return Fitted(tuple(losses), tuple(penalties))


def _batches(volumes: Sequence[Crops], settings: FitSettings, generator: torch.Generator) -> Iterator[list[Example]]:
    """Crops of all volumes in a random order; those of a batch have the same shape."""
    order = torch.randperm(len(volumes) * settings.crops, generator=generator) % len(volumes)
    batch: list[Example] = []
    for index in order.tolist():
        crop = volumes[index].draw(generator)
        if batch and (len(batch) == settings.batch or batch[0].inputs.shape != crop.inputs.shape):
            yield batch
            batch = []
        batch.append(crop)
    yield batch


def _step(
    adapter: FewShotAdapter,
    optimiser: torch.optim.Optimizer,
    batch: Sequence[Example],
    settings: FitSettings,
    generator: torch.Generator,
) -> float:
    device = next(adapter.parameters()).device
    inputs = torch.stack([example.inputs for example in batch]).to(device)
    truth = torch.stack([example.truth for example in batch]).to(device).float()
    labelled = torch.stack([torch.ones_like(e.truth) if e.labelled is None else e.labelled for e in batch]).to(device)
    if adapter.reads == "images":
        size = (len(batch), 1, 1, 1, 1)
        shift = settings.shift * (2 * torch.rand(size, generator=generator) - 1)
        inputs = inputs + (shift * (torch.rand(size, generator=generator) < 0.5)).to(device)
    loss = dice_loss(adapter(inputs).sigmoid(), truth, labelled)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.item()


def _size_step(
    adapter: FewShotAdapter,
    optimiser: torch.optim.Optimizer,
    queries: Sequence[Query],
    expected: float,
    settings: FitSettings,
) -> float:
    """One step on the mean penalty of all query volumes; one volume at a time is held with its gradient."""
    device = next(adapter.parameters()).device
    total = 0.0
    optimiser.zero_grad()
    for query in queries:
        size = query.share * soft_size(adapter(query.inputs[None].to(device)).sigmoid())
        penalty = size_penalty(size, expected, settings.margin) / len(queries)
        (settings.weight * penalty).backward()
        total += penalty.item()
    if total > 0:  # AdamW would carry on along its momentum.
        optimiser.step()
    return total
