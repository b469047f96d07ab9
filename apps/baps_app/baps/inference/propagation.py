"""Propagate masks from clicked slices through a volume until the organ ends.

Propagation runs outwards from the outermost clicked slices, and from both sides between two clicked slices. Each slice
is segmented from the mask of the previous one; the caller decides by which model and prompt.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from baps.blackbox import Capabilities
from baps.prompts import Point, Prompt

# Chosen on the training patients of benchmarks/interactive/whole_organs.py, by trials from one clicked slice.

_MAX_GROWTH = 1.7
"""A mask more than this many times as large as the previous one has spilled into something else: the organ has ended.
"""

_MAX_GREY_DIFFERENCE = 45
"""Largest difference of the median grey level (0 to 255) from the clicked slice's; beyond it, this is another tissue.
"""

_MIN_OVERLAP = 0.5
"""Smallest share of the smaller of two neighbouring masks that must lie in the other one."""

_MIN_AREA = 0.005
"""Smallest area, as a share of the clicked mask's; a smaller mask counts as empty."""

_BOX_MARGIN = 0.05
"""Margin on each side of a box, as a share of its length."""

Step = Callable[[int, NDArray[np.bool_]], NDArray[np.float32]]
"""Return the probability of the object on a slice, (rows, columns), given its index and the mask of the previous slice.
"""


@dataclass(frozen=True)
class VolumeSlices:
    """The slices that an organ may reach.

    Attributes:
        first: first slice, an index across K.
        last: last slice, inclusive.
        grey: returns the grey levels of a slice, (rows, columns), 0 to 255.
        background: background clicks of the user by slice index, (X, Y) in pixels; only of slices without other clicks.
    """

    first: int
    last: int
    grey: Callable[[int], NDArray[np.float32]]
    background: Mapping[int, tuple[Point, ...]] = field(default_factory=dict)

    def contradicts_background(self, index: int, mask: NDArray[np.bool_]) -> bool:
        """Return whether a mask covers a background click of its slice.

        Args:
            index: the slice.
            mask: (rows, columns).

        Returns:
            Whether it does.
        """
        return any(mask[round(y), round(x)] for x, y in self.background.get(index, ()))


@dataclass(frozen=True)
class Propagation:
    """The result of a propagation.

    Attributes:
        masks: (rows, columns) by slice index, including the clicked slices; none is empty.
        stopped: slices at which propagation was stopped before the organ ended.
        interpolated: slices between clicked ones that no answer reached; their masks are interpolated.
    """

    masks: Mapping[int, NDArray[np.bool_]]
    stopped: tuple[int, ...]
    interpolated: tuple[int, ...]


def deepest_point(mask: NDArray[np.bool_]) -> Point:
    """Find the pixel that lies deepest inside a mask.

    Args:
        mask: (H, W), not empty.

    Returns:
        (X, Y) in pixels.
    """
    ((rows, columns),) = ndimage.find_objects(mask.astype(np.uint8))  # Nothing outside changes a depth.
    depth = ndimage.distance_transform_edt(np.pad(mask[rows, columns], 1))[1:-1, 1:-1]
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    return float(columns.start + column), float(rows.start + row)


def prompt_from_mask(mask: NDArray[np.bool_], capabilities: Capabilities, background: tuple[Point, ...] = ()) -> Prompt:
    """Prompt the next slice from the mask of the previous one.

    The prompt is a click where the mask is deepest. Several clicks, or a box around the mask, make the bundled model
    find less. A box is used only if the black box does not understand clicks.

    Args:
        mask: mask of the previous slice, (H, W), not empty.
        capabilities: what the black box understands.
        background: background clicks of the user on the next slice, (X, Y) in pixels.

    Returns:
        The prompt, in pixels of the slice.
    """
    if capabilities.clicks:
        free = mask.copy()  # Background clicks count as borders of the mask.
        for x, y in background:
            free[round(y), round(x)] = False
        return Prompt((deepest_point(free if free.any() else mask),), background)
    rows, columns = np.nonzero(mask)
    low, high = np.array([columns.min(), rows.min()], float), np.array([columns.max(), rows.max()], float)
    margin = _BOX_MARGIN * (high - low + 1)
    x0, y0 = np.maximum(low - margin, 0)
    x1, y1 = np.minimum(high + margin, np.array(mask.shape[::-1]) - 1)
    return Prompt(box=(float(x0), float(y0), float(x1), float(y1)))


@dataclass
class _Direction:
    # Propagation from a clicked slice in one direction, up to but excluding ``end``.

    start: int
    end: int
    mask: NDArray[np.bool_]
    step: Step
    slices: VolumeSlices
    probabilities: dict[int, NDArray[np.float16]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._last, self.next = self.mask, self.start + self._stride
        self._grey = np.median(self.slices.grey(self.start)[self.mask])

    @property
    def _stride(self) -> int:
        return 1 if self.end > self.start else -1

    @property
    def remaining(self) -> int:
        """Number of slices that are still to be segmented."""
        return abs(self.end - self.next)

    def advance(self) -> bool:
        """Segment the next slice.

        Returns:
            Whether the organ is on it. A mask that covers a background click ends the organ.
        """
        answer = self.step(self.next, self._last)
        mask = answer > 0.5
        before, now = self._last.sum(), mask.sum()
        if (
            now <= _MIN_AREA * self.mask.sum()
            or now > _MAX_GROWTH * before
            or (mask & self._last).sum() < _MIN_OVERLAP * min(before, now)
            or abs(np.median(self.slices.grey(self.next)[mask]) - self._grey) > _MAX_GREY_DIFFERENCE
            or self.slices.contradicts_background(self.next, mask)
        ):
            return False
        self.probabilities[self.next], self._last = answer.astype(np.float16), mask
        self.next += self._stride
        return True


def propagate(
    clicked: Mapping[int, NDArray[np.bool_]],
    start_step: Callable[[int, int], Step],
    slices: VolumeSlices,
    should_continue: Callable[[], bool] = lambda: True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Propagation:
    """Propagate masks through a volume.

    Args:
        clicked: masks of the clicked slices, (rows, columns) by slice index. They are kept as they are; nothing is
            propagated from an empty one.
        start_step: given a first slice and the slice at which to stop (exclusive, smaller to go downwards), returns the
            function that segments the slices between them.
        slices: the slices of the volume.
        should_continue: called before each slice; if it returns False, the result holds what was segmented so far.
        progress: called with the number of slices done and the total as far as it is known; the total falls when the
            organ ends.

    Returns:
        The organ. Between two clicked slices the answers from both sides are averaged, the nearer side weighing more.
            If only one side reached a slice, its answer is used alone; if neither did, the shape is interpolated.
    """
    known_masks = {index: mask for index, mask in sorted(clicked.items()) if mask.any()}
    order = list(known_masks)
    ends = [(order[-1], slices.last + 1), (order[0], slices.first - 1)] if order else []
    for lower, upper in itertools.pairwise(order):
        ends += [(lower, upper), (upper, lower)]
    directions = [_Direction(start, end, known_masks[start], start_step(start, end), slices) for start, end in ends]
    running, stopped_at, done = deque(direction for direction in directions if direction.remaining), [], 0
    while running:  # Directions take turns, so that a result that is stopped early lies around the clicks.
        progress(done, done + sum(direction.remaining for direction in running))
        if not should_continue():
            stopped_at = [direction.next for direction in running]
            break
        direction = running.popleft()
        if direction.advance() and direction.remaining:
            running.append(direction)
        done += 1
    progress(done, done)
    masks = {
        index: mask
        for direction in directions
        for index in direction.probabilities
        if (mask := _blend(index, directions) > 0.5).any()
    }
    shapes = {}
    for lower, upper in itertools.pairwise(order if not stopped_at else []):
        for index in set(range(lower + 1, upper)) - set(masks):
            shape = interpolate_shape(known_masks[lower], known_masks[upper], (index - lower) / (upper - lower))
            if shape.any() and not slices.contradicts_background(index, shape):
                shapes[index] = shape
    everything = dict(sorted({**masks, **shapes, **known_masks}.items()))
    return Propagation(everything, tuple(sorted(set(stopped_at))), tuple(sorted(shapes)))


def interpolate_shape(lower: NDArray[np.bool_], upper: NDArray[np.bool_], share: float) -> NDArray[np.bool_]:
    """Interpolate between two masks by their signed distances.

    Args:
        lower: mask (H, W) of one slice.
        upper: mask (H, W) of the other slice.
        share: position between them, from 0 (``lower``) to 1 (``upper``).

    Returns:
        The shape at that position, (H, W).
    """
    first, last = (ndimage.distance_transform_edt(m) - ndimage.distance_transform_edt(~m) for m in (lower, upper))
    shape: NDArray[np.bool_] = (1 - share) * first + share * last > 0
    return shape


def _blend(index: int, directions: list[_Direction]) -> NDArray[np.float64]:
    """Average the answers of all directions that reached a slice, weighted by the distance from each one's end."""
    here = [direction for direction in directions if index in direction.probabilities]
    shares = np.array([abs(index - direction.end) for direction in here], float) if len(here) > 1 else np.ones(1)
    blended: NDArray[np.float64] = sum(
        (share * direction.probabilities[index] for share, direction in zip(shares / shares.sum(), here, strict=True)),
        np.zeros(here[0].mask.shape),
    )
    return blended
