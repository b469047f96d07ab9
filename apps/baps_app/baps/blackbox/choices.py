"""Names of the black boxes, for those who offer them. This module imports nothing heavy."""

from __future__ import annotations

from baps.errors import InputError

CHECKPOINT_BLACK_BOXES = ("sam", "medsam", "sam_hq", "sam2", "sam3")
"""Names of the black boxes that need a checkpoint."""

BLACK_BOXES = ("bundled", *CHECKPOINT_BLACK_BOXES, "remote")
"""Names that ``load_black_box`` knows."""

VOLUME_BLACK_BOXES = ("bundled3d", "nninteractive")
"""Names that ``load_volume_black_box`` knows."""


def check_black_box(name: str) -> None:
    """Check that a black box answers prompts on slices.

    Args:
        name: its name.

    Raises:
        InputError: if there is none of this name, or it answers in 3D.
    """
    if name in VOLUME_BLACK_BOXES:
        raise InputError(
            f"{name} answers in 3D, which is not used here. A server uses it beside a model of slices "
            f"(--volume-black-box {name}); baps adapt and baps evaluate use it alone (--black-box {name})."
        )
    if name not in BLACK_BOXES:
        raise InputError(f"There is no black box named {name!r}. Known ones: {', '.join(BLACK_BOXES)}.")
