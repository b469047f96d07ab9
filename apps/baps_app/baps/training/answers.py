"""Query the black box for masks of training slices, and keep its answers: heads are trained and judged on them.

An answer that is kept is used more than once, at no query cost: to choose a zoom, to train the heads of all folds on
the patients of each, and to judge each head on the patients that it was not trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from baps.adapters.visual_prompt import VisualPrompt
from baps.adapters.zoom import crop_for_prompt, paste_crops
from baps.blackbox import BlackBox
from baps.prompts import Prompt
from baps.prompts.simulated import draw_correction, draw_prompt, other_kind
from baps.training.batches import Batch, Batches
from baps.training.query_log import QueryLog
from baps.training.steps import query_black_box

MAX_SIZE = 256
"""Answers are kept with at most this many pixels along each side."""

_QUERY_BATCH = 32
_MAX_CORRECTIONS = 4
_THRESHOLD = 127.5


@dataclass(frozen=True)
class Answers:
    """Answers of the black box to prompts on crops of slices.

    Attributes:
        rows: index of each answer's slice, N.
        prompts: prompts that were used, (X, Y) in pixels of the slices.
        probability: answers in the frame of the crops, (N, R, R) uint8; 255 is probability 1.
    """

    rows: list[int]
    prompts: list[Prompt]
    probability: NDArray[np.uint8]

    def __add__(self, other: Answers) -> Answers:
        """Join the answers to two sets of prompts.

        Args:
            other: the second set.

        Returns:
            The answers to both, in this order.
        """
        return Answers(
            self.rows + other.rows,
            self.prompts + other.prompts,
            np.concatenate([self.probability, other.probability]),
        )

    def select(self, numbers: Sequence[int]) -> Answers:
        """Select some of the answers.

        Args:
            numbers: their indices.

        Returns:
            The selected answers.
        """
        rows, prompts = [self.rows[n] for n in numbers], [self.prompts[n] for n in numbers]
        return Answers(rows, prompts, self.probability[list(numbers)])


def query_answers(
    black_box: BlackBox,
    visual_prompt: VisualPrompt,
    batches: Batches,
    rows: Sequence[int],
    prompts: Sequence[Prompt],
    query_log: QueryLog,
    key: Mapping[str, int | str],
) -> Answers:
    """Query the black box with given prompts.

    Args:
        black_box: the model.
        visual_prompt: changes the images.
        batches: the slices, and the zoom.
        rows: index of each prompt's slice, N.
        prompts: one per image, (X, Y) in pixels of the slices.
        query_log: logs the answers.
        key: names the answers in the log.

    Returns:
        The answers.
    """
    parts = [np.zeros((0, *[min(MAX_SIZE, batches.slices[0].image.shape[0])] * 2), np.uint8)]
    for start in range(0, len(rows), _QUERY_BATCH):
        batch = batches.build(rows[start : start + _QUERY_BATCH], prompts[start : start + _QUERY_BATCH])

        def query(batch: Batch = batch) -> NDArray[np.uint8]:
            changed = visual_prompt.transform_images(batch.images, batch.features, batch.prompts)
            probability = query_black_box(black_box, changed, batch.prompts, batch.sizes)
            if probability.shape[-1] > MAX_SIZE:
                probability = F.adaptive_avg_pool2d(probability[:, None], MAX_SIZE)[:, 0]
            return (255 * probability).round().to(torch.uint8).numpy()

        parts.append(query_log.get_or_query_masks({**key, "from": start}, query))
    return Answers(list(rows), list(prompts), np.concatenate(parts))


def query_more_answers(
    black_box: BlackBox,
    visual_prompt: VisualPrompt,
    batches: Batches,
    first: Answers,
    kind: str,
    images: int,
    seed: int,
    query_log: QueryLog,
    key: Mapping[str, int | str],
) -> Answers:
    """Query the black box for what a head needs besides the first prompts that patients are judged with.

    Prompts with one correction take a third of the images, with two corrections a sixth, and so on. First prompts on
    all slices take the rest; half of them are of the other kind.

    Args:
        black_box: the model.
        visual_prompt: changes the images.
        batches: the slices, and the zoom.
        first: answers to first prompts, which were queried already.
        kind: kind of the first prompts, ``click`` or ``box``.
        images: number of images to query.
        seed: seed of the prompts.
        query_log: logs the answers.
        key: names the answers in the log.

    Returns:
        The further answers.
    """
    random = np.random.default_rng([seed, 104729])
    capabilities = black_box.capabilities
    other = other_kind(kind, capabilities.clicks, capabilities.boxes)
    level_images = 2 * images // 3 if capabilities.clicks else 0
    corrections = [level_images >> level for level in range(1, 1 + _MAX_CORRECTIONS)] if level_images else []
    rows = batches.sample_rows(images - sum(corrections), random)
    prompts = [draw_prompt(batches.slices[row].target, (other, kind)[n % 2], random) for n, row in enumerate(rows)]
    last = query_answers(black_box, visual_prompt, batches, rows, prompts, query_log, {**key, "corrections": 0})
    collected = last
    order = random.permutation(len(first.rows) + len(last.rows))
    last = first + last
    for count, max_images in enumerate(corrections, start=1):
        corrected = (
            (last.rows[n], prompt)
            for n in order
            if (prompt := _add_correction(last.prompts[n], last.probability[n], batches, last.rows[n], random))
        )
        sampled = list(islice(corrected, max_images))
        last = query_answers(
            black_box,
            visual_prompt,
            batches,
            [row for row, _ in sampled],
            [prompt for _, prompt in sampled],
            query_log,
            {**key, "corrections": count},
        )
        collected += last
        order = np.arange(len(last.rows))
    return collected


def _add_correction(
    prompt: Prompt, probability: NDArray[np.uint8], batches: Batches, row: int, random: np.random.Generator
) -> Prompt | None:
    """Add a click where the answer is most wrong; return None if no correction is needed."""
    target = batches.slices[row].target
    side = len(target)
    answer = torch.from_numpy(probability)[None].float()
    mask = paste_crops(answer, [crop_for_prompt(prompt, side, batches.zoom)], side)[0].numpy() > _THRESHOLD
    return draw_correction(prompt, mask, target, random)
