"""Names of the black boxes, for those who offer them. This module imports nothing heavy."""

from __future__ import annotations

CHECKPOINT_BLACK_BOXES = ("sam", "medsam", "sam_hq", "sam2", "sam3")
"""Names of the black boxes that need a checkpoint."""

BLACK_BOXES = ("bundled", *CHECKPOINT_BLACK_BOXES, "remote")
"""Names that ``load_black_box`` knows."""

VOLUME_BLACK_BOXES = ("bundled3d", "nninteractive")
"""Names that ``load_volume_black_box`` knows."""
