"""The output-side head is trained by ordinary backpropagation, on answers of the black box to adapted images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from baps.adapters.output_head import GRID, OutputHead, head_features
from baps.adapters.visual_prompt import VisualPrompt
from baps.adapters.zoom import crop_for_prompt, paste_crops
from baps.blackbox import BlackBox
from baps.imaging.metrics import dice
from baps.prompts import Prompt
from baps.prompts.simulated import PROMPTS, draw_correction, draw_prompt
from baps.training.batches import Batch, Batches
from baps.training.losses import image_losses
from baps.training.query_log import QueryLog
from baps.training.steps import ask

_BATCH = 8
_STEPS = 150
_TRIAL_STEPS = 60
_RATE = 5e-3
_DECAY = 0.1
_ASKED_AT_ONCE = 32
_OTHER_KIND = 4
"""One first prompt in so many is of the other kind: who trains for clicks draws a box now and then."""

_MOST_CORRECTIONS = 4
_VARIATION = 0.1
_HALF = 127.5


@dataclass(frozen=True)
class Answers:
    """What the black box said of what it was shown of adapted slices, at the head's grid.

    Attributes:
        rows: of the slices, N.
        prompts: that they were asked with, in pixels of the slices.
        probability: (N, GRID, GRID) uint8, 255 being certain.
    """

    rows: list[int]
    prompts: list[Prompt]
    probability: NDArray[np.uint8]


def collect_answers(
    black_box: BlackBox,
    visual_prompt: VisualPrompt,
    batches: Batches,
    kind: str,
    images: int,
    seed: int,
    query_log: QueryLog,
    run: str,
) -> Answers:
    """Ask for first prompts on half of the images, for one correction of half of those, and so on.

    Args:
        black_box: what is adapted to.
        visual_prompt: that was trained for it.
        batches: the slices.
        kind: of most first prompts.
        images: how many may be asked.
        seed: of the prompts.
        journal: keeps the answers.
        run: what the journal calls this run.
    """
    random = np.random.default_rng([seed, 104729])
    able = black_box.capabilities
    kinds = [name for name, understood in zip(PROMPTS, (able.clicks, able.boxes), strict=True) if understood]
    corrections = [images >> level for level in range(2, 2 + _MOST_CORRECTIONS)] if able.clicks else []
    rows = batches.order(images - sum(corrections), random)
    prompts = []
    for number, row in enumerate(rows):
        other = [name for name in kinds if name != kind and number % _OTHER_KIND == 0]
        prompts.append(draw_prompt(batches.slices[row].truth, (other or [kind])[0], random))
    found = Answers([], [], np.zeros((0, GRID, GRID), np.uint8))
    for count, most in enumerate([*corrections, 0], start=1):
        answered = _ask(black_box, visual_prompt, batches, rows, prompts, query_log, {"run": run, "head": count})
        found = Answers(found.rows + rows, found.prompts + prompts, np.concatenate([found.probability, answered]))
        longer = (
            (row, corrected)
            for row, prompt, answer in zip(rows, prompts, answered, strict=True)
            if (corrected := _correct(prompt, answer, batches.slices[row].truth, batches.zoom, random))
        )
        chosen = list(islice(longer, most))
        if not chosen:
            break
        rows, prompts = [row for row, _ in chosen], [prompt for _, prompt in chosen]
    return found


def _correct(
    prompt: Prompt, probability: NDArray[np.uint8], truth: NDArray[np.bool_], zoom: float, random: np.random.Generator
) -> Prompt | None:
    """The prompt with one more click where the answer is most wrong, or None where none is needed."""
    side = len(truth)
    answer = F.interpolate(torch.from_numpy(probability)[None, None].float(), (side, side), mode="bilinear")[0]
    mask = paste_crops(answer, [crop_for_prompt(prompt, side, zoom)], side)[0].numpy() > _HALF
    return draw_correction(prompt, mask, truth, random)


def _ask(
    black_box: BlackBox,
    visual_prompt: VisualPrompt,
    batches: Batches,
    rows: Sequence[int],
    prompts: Sequence[Prompt],
    query_log: QueryLog,
    what: Mapping[str, int | str],
) -> NDArray[np.uint8]:
    """Answers at the grid, (N, GRID, GRID)."""
    parts = []
    for start in range(0, len(rows), _ASKED_AT_ONCE):
        batch = batches.of(rows[start : start + _ASKED_AT_ONCE], prompts[start : start + _ASKED_AT_ONCE])

        def asked(batch: Batch = batch) -> NDArray[np.uint8]:
            changed = visual_prompt.transform_images(batch.images, batch.features, batch.prompts)
            probability = ask(black_box, changed, batch.prompts)
            return (255 * _at_grid(probability)).round().to(torch.uint8).numpy()

        parts.append(query_log.recall_masks({**what, "from": start}, asked))
    return np.concatenate(parts)


def train_head(batches: Batches, answers: Answers, seed: int) -> OutputHead | None:
    """A head that brings answers nearer to the truth of patients that it has not seen, or None if none does.

    From many patients it may learn which way organs lie; from few it must not, and is trained on turned images. Which
    is better, or no head, is tried on a third of the patients before it is trained on all. With one patient nobody can
    tell; images are turned then.

    Args:
        batches: the slices that were asked.
        answers: what came back.
        seed: of weights and order.
    """
    features, truth = _lessons(batches, answers, seed)
    owners = np.array([batches.slices[row].patient for row in answers.rows])
    patients = np.random.default_rng([seed, 15485863]).permutation(np.unique(owners))
    turned = True
    if len(patients) > 1:
        out = torch.from_numpy(np.isin(owners, patients[: max(1, len(patients) // 3)]))
        judging = features[out], truth[out]
        scores = {
            way: _dice(_fit(features[~out], truth[~out], seed, way, _TRIAL_STEPS), *judging) for way in (True, False)
        }
        turned = scores[True] >= scores[False]
        if scores[turned] <= _dice(None, *judging):
            return None
    return _fit(features, truth, seed, turned, _STEPS)


def _lessons(batches: Batches, answers: Answers, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, FEATURES, GRID, GRID) in half precision, and truth (N, 1, GRID, GRID)."""
    random = np.random.default_rng([seed, 32452843])
    features, truth = [], []
    for start in range(0, len(answers.rows), _ASKED_AT_ONCE):
        rows = slice(start, start + _ASKED_AT_ONCE)
        batch = batches.of(answers.rows[rows], answers.prompts[rows])
        probability = torch.from_numpy(answers.probability[rows]).float() / 255
        features.append(head_features(_varied(batch.images, random), probability, batch.prompts).half())
        truth.append(_at_grid(batch.truth)[:, None])
    return torch.cat(features), torch.cat(truth)


def _fit(features: torch.Tensor, truth: torch.Tensor, seed: int, turned: bool, steps: int) -> OutputHead:
    """Soft Dice and cross-entropy, AdamW, one cycle of step sizes."""
    head = OutputHead(seed)
    optimiser = torch.optim.AdamW(head.parameters(), lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=steps)
    random = np.random.default_rng([seed, 1299709])
    order: list[int] = []
    size = min(_BATCH, len(features))
    for _ in range(steps):
        while len(order) < size:
            order += random.permutation(len(features)).tolist()
        chosen, order = order[:size], order[size:]
        known, wanted = features[chosen].float(), truth[chosen]
        if turned:
            known, wanted = _turned(known, wanted, random)
        loss = image_losses((3 * known[:, :1] + head(known))[:, 0].sigmoid(), wanted[:, 0]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return head.eval()


@torch.no_grad()
def _dice(head: OutputHead | None, features: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean Dice at the grid of answers that a head corrected, or of the answers themselves."""
    scores = []
    for known, wanted in zip(features.split(_ASKED_AT_ONCE), truth.split(_ASKED_AT_ONCE), strict=True):
        odds = 3 * known[:, :1].float()
        masks = (odds + head(known.float()) if head else odds) > 0
        scores += [dice(mask, there) for mask, there in zip(masks.numpy(), (wanted > 0.5).numpy(), strict=True)]
    return float(np.mean(scores))


def _varied(images: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Images (B, 3, S, S) a little brighter or darker, softer or harder: the next scanner's are."""
    contrast, brightness = torch.from_numpy(random.normal(size=(2, len(images), 1, 1, 1))).float() * _VARIATION
    return (images * (1 + contrast) + 255 * brightness / 2).clamp(0, 255)


def _turned(
    features: torch.Tensor, truth: torch.Tensor, random: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both turned or mirrored alike, (B, C, GRID, GRID); no feature has a direction, so it is as good as new images."""
    axes = [axis for axis in (-1, -2) if random.random() < 0.5]
    features, truth = features.flip(axes), truth.flip(axes)
    return (features.mT, truth.mT) if random.random() < 0.5 else (features, truth)


def _at_grid(images: torch.Tensor) -> torch.Tensor:
    """(N, S, S) to means of cells, (N, GRID, GRID)."""
    return F.adaptive_avg_pool2d(images[:, None], GRID)[:, 0]
