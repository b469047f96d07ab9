"""Tables that a bench keeps in a page for users."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_between_marks(lines: Sequence[str], file: Path, bench: str) -> None:
    """Put lines in place of what stands between the two marks of a bench in a page."""
    begin, end = f"<!-- {bench} begins -->", f"<!-- {bench} ends -->"
    before, rest = file.read_text().split(begin)
    file.write_text(before + begin + "\n" + "\n".join(lines) + "\n" + end + rest.split(end)[1])
