"""Names of the black boxes, for those who offer them. This module imports nothing heavy."""

from __future__ import annotations

BLACK_BOXES = ("bundled", "sam", "sam2", "remote")
"""Names that ``load_black_box`` knows."""
