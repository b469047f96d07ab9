"""Represent clicks and a box on one image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from baps.errors import InputError

Point = tuple[float, float]
"""(X, Y) in pixels; (0, 0) is the centre of the first pixel."""


@dataclass(frozen=True)
class Prompt:
    """Clicks and an optional box on one image.

    Attributes:
        positive: clicks on the object, (X, Y) in pixels; (0, 0) is the centre of the first pixel.
        negative: clicks on the background, likewise.
        box: (X0, Y0, X1, Y1), the first and the last pixel that the object may touch, or None.

    Raises:
        InputError: if there is neither a positive click nor a box, or the box has no extent.
    """

    positive: tuple[Point, ...] = ()
    negative: tuple[Point, ...] = ()
    box: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        if not self.positive and self.box is None:
            raise InputError("There is no positive click and no box. Click on the organ, or draw a box around it.")
        if self.box is not None and (self.box[2] < self.box[0] or self.box[3] < self.box[1]):
            raise InputError(f"The box {self.box} ends before it starts. Give it as x0, y0, x1, y1.")

    def mapped(self, transform: Callable[[Point], Point]) -> Prompt:
        """Map every point, and the corners of the box, to another image.

        Args:
            transform: function that maps (X, Y) in pixels of this image to (X, Y) of the other one. It may mirror or
                swap the axes.

        Returns:
            The same prompt in pixels of the other image.
        """
        box = self.box
        if box is not None:
            (x0, y0), (x1, y1) = transform(box[:2]), transform(box[2:])
            box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        return Prompt(tuple(map(transform, self.positive)), tuple(map(transform, self.negative)), box)

    def scaled(self, scale_x: float, scale_y: float) -> Prompt:
        """Map the prompt to the resized image. The centres of pixels are kept.

        Args:
            scale_x: factor along X.
            scale_y: factor along Y.

        Returns:
            The same prompt in pixels of the resized image.
        """
        return self.mapped(lambda point: ((point[0] + 0.5) * scale_x - 0.5, (point[1] + 0.5) * scale_y - 0.5))
