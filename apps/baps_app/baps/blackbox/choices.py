"""Names of the black boxes, for those who offer them. This module imports nothing heavy."""

from __future__ import annotations

BLACK_BOXES = ("bundled", "sam", "medsam", "sam2", "remote")
"""Names that ``load_black_box`` knows."""

CHECKPOINT_BLACK_BOXES = ("sam", "medsam", "sam2")
"""Those that need a checkpoint."""
