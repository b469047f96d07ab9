"""Load a frozen encoder by its name."""

from __future__ import annotations

from baps.adapters.visual_prompt.encoder import Encoder
from baps.adapters.visual_prompt.statistics import ImageStatistics
from baps.errors import InputError

ENCODERS = ("statistics", "clip", "vit_mae", "dino")
"""Names of the encoders."""


def load_encoder(name: str = "statistics", source: str = "") -> Encoder:
    """Load an encoder. A network that is loaded already is shared.

    Args:
        name: one of ``ENCODERS``.
        source: for a network, a local folder with ``config.json`` and ``model.safetensors`` (for ``dino`` also a
            checkpoint), or a hub id, ``owner/name`` or ``owner/name@revision``. If empty, the hub id of the published
            model.

    Returns:
        The encoder.

    Raises:
        InputError: if there is no such encoder, or it takes no source.
        BapsError: if the extra is not installed, or the model cannot be found or read.
    """
    if name not in ENCODERS:
        raise InputError(f"There is no encoder named {name!r}. Known ones: {', '.join(ENCODERS)}.")
    if name == "statistics":
        if source:
            raise InputError(f"The encoder 'statistics' has no weights; omit its source {source!r}.")
        return ImageStatistics()
    from baps.adapters.visual_prompt.networks import load_network

    return load_network(name, source)
