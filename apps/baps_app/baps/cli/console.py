"""The console that commands print to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment

from baps.utils.printable import printable


class Console(rich.console.Console):
    """Rich's console, which removes control characters from values, because a terminal would execute them."""

    def render(self, *renderable: Any, **options: Any) -> Iterable[Segment]:
        """Render as Rich does, without control characters except for line ends.

        Args:
            *renderable: What to render.
            **options: Options of Rich.

        Yields:
            Segments of text.
        """
        for text, style, control in super().render(*renderable, **options):
            yield Segment(text if control else "\n".join(map(printable, text.split("\n"))), style, control)
