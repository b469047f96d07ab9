"""From clicked slices to a whole organ: a mask is carried on from slice to slice until the organ ends.

From the outermost clicked slices outwards, and between two of them from either side. Each next slice is answered for
the last mask; who answers, and by what prompt, is the caller's matter.
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

_MOST_GROWTH = 1.7
"""A mask so many times as large as the last one has spilled into something else: the organ has ended."""

_OTHER_TISSUE = 45
"""So many grey levels (of 255) between what is found and what was clicked, in the median: it is no more the organ."""

_LEAST_OVERLAP = 0.5
"""Share of the smaller of two neighbouring masks that lies in the other; with less it is something else."""

_CRUMB = 0.005
"""Of the clicked mask's area: what is smaller is nothing."""

_BOX_MARGIN = 0.05
"""Of a box's sides, on each side."""

Step = Callable[[int, NDArray[np.bool_]], NDArray[np.float32]]
"""Gives the probability (rows, columns) on a slice from the mask of the one before."""


@dataclass(frozen=True)
class Slices:
    """What is known of the slices of a volume.

    Attributes:
        first, last: that the organ may reach.
        grey: levels of a slice (rows, columns), 0 to 255.
        background: clicks of a person beside the organ, by slice that has no others, in its pixels (X, Y).
    """

    first: int
    last: int
    grey: Callable[[int], NDArray[np.float32]]
    background: Mapping[int, tuple[Point, ...]] = field(default_factory=dict)

    def denied(self, index: int, mask: NDArray[np.bool_]) -> bool:
        """Whether a person said of a pixel of a mask that it is not the organ."""
        return any(mask[round(y), round(x)] for x, y in self.background.get(index, ()))


@dataclass(frozen=True)
class Carried:
    """What was found.

    Attributes:
        masks: (rows, columns) by slice, those of the clicked slices among them; nowhere empty.
        stopped: slices at which it was given up before the organ ended.
        between: slices that no answer came to, with the shape between the clicked ones.
    """

    masks: Mapping[int, NDArray[np.bool_]]
    stopped: tuple[int, ...]
    between: tuple[int, ...]


def deepest(mask: NDArray[np.bool_]) -> Point:
    """The pixel (X, Y) that lies deepest inside a mask (H, W), which is not empty."""
    ((rows, columns),) = ndimage.find_objects(mask.astype(np.uint8))  # Nothing outside changes a depth.
    depth = ndimage.distance_transform_edt(np.pad(mask[rows, columns], 1))[1:-1, 1:-1]
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    return float(columns.start + column), float(rows.start + row)


def prompt_from_mask(mask: NDArray[np.bool_], able: Capabilities, background: tuple[Point, ...] = ()) -> Prompt:
    """What the next slice is prompted with.

    A click where the mask is deepest; with several clicks, or a box around the mask, the bundled model finds less. A
    box only where the black box understands no clicks.

    Args:
        mask: of the slice before, (H, W), not empty.
        able: what the black box understands.
        background: clicks of a person on the next slice.
    """
    if able.clicks:
        free = mask.copy()  # Depth is also measured from what is not the organ.
        for x, y in background:
            free[round(y), round(x)] = False
        return Prompt((deepest(free if free.any() else mask),), background)
    rows, columns = np.nonzero(mask)
    low, high = np.array([columns.min(), rows.min()], float), np.array([columns.max(), rows.max()], float)
    margin = _BOX_MARGIN * (high - low + 1)
    x0, y0 = np.maximum(low - margin, 0)
    x1, y1 = np.minimum(high + margin, np.array(mask.shape[::-1]) - 1)
    return Prompt(box=(float(x0), float(y0), float(x1), float(y1)))


@dataclass
class _Way:
    """From a clicked slice in one direction, up to ``end``, itself left out."""

    start: int
    end: int
    mask: NDArray[np.bool_]
    step: Step
    slices: Slices
    found: dict[int, NDArray[np.float16]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._last, self.next = self.mask, self.start + self._onwards
        self._tissue = np.median(self.slices.grey(self.start)[self.mask])

    @property
    def _onwards(self) -> int:
        return 1 if self.end > self.start else -1

    @property
    def left(self) -> int:
        """Slices that it has not come to."""
        return abs(self.end - self.next)

    def go(self) -> bool:
        """Answer one slice; whether the organ is on it. What a person said is not the organ ends it."""
        answer = self.step(self.next, self._last)
        mask = answer > 0.5
        before, now = self._last.sum(), mask.sum()
        if (
            now <= _CRUMB * self.mask.sum()
            or now > _MOST_GROWTH * before
            or (mask & self._last).sum() < _LEAST_OVERLAP * min(before, now)
            or abs(np.median(self.slices.grey(self.next)[mask]) - self._tissue) > _OTHER_TISSUE
            or self.slices.denied(self.next, mask)
        ):
            return False
        self.found[self.next], self._last = answer.astype(np.float16), mask
        self.next += self._onwards
        return True


def propagate(
    clicked: Mapping[int, NDArray[np.bool_]],
    begin: Callable[[int, int], Step],
    slices: Slices,
    go_on: Callable[[], bool] = lambda: True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Carried:
    """Carry masks on through a volume.

    Args:
        clicked: the masks (rows, columns) of the clicked slices. They stay as they are; an empty one begins nothing.
        begin: gives what answers the slices after a first one, up to another, itself left out; below it to go down.
        slices: of the volume.
        go_on: asked before each slice; if False, what was found so far is the answer.
        progress: told (slices answered, slices in all as far as is known: fewer when the organ ends).

    Returns:
        The organ. Between two clicked slices the answers from both sides are blended, the nearer counts for more;
        where but one of them came, it counts alone, and where none came, the shape between the clicked ones.
    """
    known = {index: mask for index, mask in sorted(clicked.items()) if mask.any()}
    order = list(known)
    ends = [(order[-1], slices.last + 1), (order[0], slices.first - 1)] if order else []
    for lower, upper in itertools.pairwise(order):
        ends += [(lower, upper), (upper, lower)]
    ways = [_Way(start, end, known[start], begin(start, end), slices) for start, end in ends]
    running, stopped, done = deque(way for way in ways if way.left), [], 0
    while running:  # By turns, so that what is found in a short time lies around the clicks.
        progress(done, done + sum(way.left for way in running))
        if not go_on():
            stopped = [way.next for way in running]
            break
        way = running.popleft()
        if way.go() and way.left:
            running.append(way)
        done += 1
    progress(done, done)
    masks = {index: mask for way in ways for index in way.found if (mask := _blended(index, ways) > 0.5).any()}
    shapes = {}
    for lower, upper in itertools.pairwise(order if not stopped else []):
        for index in set(range(lower + 1, upper)) - set(masks):
            shape = shape_between(known[lower], known[upper], (index - lower) / (upper - lower))
            if shape.any() and not slices.denied(index, shape):
                shapes[index] = shape
    everything = dict(sorted({**masks, **shapes, **known}.items()))
    return Carried(everything, tuple(sorted(set(stopped))), tuple(sorted(shapes)))


def shape_between(lower: NDArray[np.bool_], upper: NDArray[np.bool_], share: float) -> NDArray[np.bool_]:
    """The shape at a share of the way from one mask (H, W) to another, by their signed distances."""
    first, last = (ndimage.distance_transform_edt(m) - ndimage.distance_transform_edt(~m) for m in (lower, upper))
    shape: NDArray[np.bool_] = (1 - share) * first + share * last > 0
    return shape


def _blended(index: int, ways: list[_Way]) -> NDArray[np.float64]:
    """What all ways that came to a slice say of it, each by its distance from the clicked slice of the others."""
    here = [way for way in ways if index in way.found]
    shares = np.array([abs(index - way.end) for way in here], float) if len(here) > 1 else np.ones(1)
    whole: NDArray[np.float64] = sum(
        (share * way.found[index] for share, way in zip(shares / shares.sum(), here, strict=True)),
        np.zeros(here[0].mask.shape),
    )
    return whole
