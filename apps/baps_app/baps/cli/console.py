"""The console that commands print to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment

from baps.utils.printable import printable


class Console(rich.console.Console):
    """Rich's, which shows no control characters of the values that it is given: a terminal would obey them."""

    def render(self, *renderable: Any, **options: Any) -> Iterable[Segment]:
        """Render as Rich does, without control characters but for the ends of lines."""
        for text, style, control in super().render(*renderable, **options):
            yield Segment(text if control else "\n".join(map(printable, text.split("\n"))), style, control)
