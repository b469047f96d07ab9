"""Convert prompts to the tensors that SAM's exported (ONNX) decoder takes, for remote models.

``points``, (B, N, 2) float32, are (X, Y) in pixels of the image; (0, 0) is the centre of the first pixel. ``labels``,
(B, N) int32, give the kind of each point: 1 for a positive click, 0 for a negative one, 2 and 3 for the first and the
last corner of the box, -1 for padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from baps.errors import InputError
from baps.prompts import Prompt

_POSITIVE, _NEGATIVE, _FIRST_CORNER, _LAST_CORNER, _PADDING = 1, 0, 2, 3, -1


def to_tensors(prompts: Sequence[Prompt]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Convert prompts to tensors. A prompt without a box ends in padding, as SAM's decoder expects.

    Args:
        prompts: the prompts, in pixels of their images.

    Returns:
        ``points`` and ``labels``.
    """
    rows = [_row(prompt) for prompt in prompts]
    longest = max(map(len, rows))
    points = np.zeros((len(rows), longest, 2), np.float32)
    labels = np.full((len(rows), longest), _PADDING, np.int32)
    for number, row in enumerate(rows):
        points[number, : len(row)] = [point for point, _ in row]
        labels[number, : len(row)] = [label for _, label in row]
    return points, labels


def _row(prompt: Prompt) -> list[tuple[Sequence[float], int]]:
    row: list[tuple[Sequence[float], int]] = [(point, _POSITIVE) for point in prompt.positive]
    row += [(point, _NEGATIVE) for point in prompt.negative]
    if prompt.box:
        return [*row, (prompt.box[:2], _FIRST_CORNER), (prompt.box[2:], _LAST_CORNER)]
    return [*row, ((0, 0), _PADDING)]


def to_prompts(points: NDArray[np.float32], labels: NDArray[np.int32]) -> list[Prompt]:
    """Convert tensors to prompts.

    Args:
        points: positions, (B, N, 2) as (X, Y) in pixels.
        labels: kinds of the points, (B, N).

    Returns:
        One prompt per row.

    Raises:
        InputError: if the shapes do not match, a point is not finite, a label is unknown, a box does not have two
            corners, or a prompt has neither a positive click nor a box.
    """
    if points.ndim != 3 or points.shape[-1] != 2 or labels.shape != points.shape[:2]:
        raise InputError(
            f"points must have the shape (B, N, 2) and labels (B, N), not {points.shape} and {labels.shape}."
        )
    return [_prompt(*row) for row in zip(points, labels, strict=True)]


def _prompt(points: NDArray[np.float32], labels: NDArray[np.int32]) -> Prompt:
    by_label: dict[int, list[tuple[float, float]]] = {label: [] for label in range(_PADDING, _LAST_CORNER + 1)}
    for (x, y), label in zip(points.tolist(), labels.tolist(), strict=True):
        if label not in by_label:
            raise InputError(f"There is no point label {label}. Known ones: -1, 0, 1, 2 and 3.")
        by_label[label].append((x, y))
    if not np.isfinite(points[labels != _PADDING]).all():
        raise InputError("A point is not finite. Give (X, Y) in pixels of the image.")
    first, last = by_label[_FIRST_CORNER], by_label[_LAST_CORNER]
    if len(first) != len(last) or len(first) > 1:
        raise InputError("A box needs one point of label 2, its first corner, and one of label 3, its last.")
    box = (*first[0], *last[0]) if first else None
    return Prompt(tuple(by_label[_POSITIVE]), tuple(by_label[_NEGATIVE]), box)
