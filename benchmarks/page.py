"""Write the tables of a benchmark into a page of the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_between_marks(lines: Sequence[str], file: Path, bench: str) -> None:
    """Replace the lines between the two marks of a benchmark in a page.

    Args:
        lines: the new lines.
        file: the page.
        bench: name of the benchmark in the marks.
    """
    begin, end = f"<!-- {bench} begins -->", f"<!-- {bench} ends -->"
    before, rest = file.read_text().split(begin)
    file.write_text(before + begin + "\n" + "\n".join(lines) + "\n" + end + rest.split(end)[1])
