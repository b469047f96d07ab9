"""Load a frozen encoder by its name."""

from __future__ import annotations

from baps.adapters.visual_prompt.encoder import Encoder
from baps.adapters.visual_prompt.statistics import ImageStatistics
from baps.errors import InputError

ENCODERS = ("statistics", "clip", "vit_mae", "dino")


def load_encoder(name: str = "statistics", source: str = "") -> Encoder:
    """Load an encoder; one that is in use already is shared.

    Args:
        name: one of ``ENCODERS``.
        source: for a network, a local folder with ``config.json`` and ``model.safetensors``, for ``dino`` also a
            checkpoint, or a hub id, ``owner/name`` or ``owner/name@revision``. Empty: the published model's hub id.

    Raises:
        InputError: if there is no such encoder, or the source does not go with it.
        BapsError: if the extra is not installed, or the model cannot be found or read.
    """
    if name not in ENCODERS:
        raise InputError(f"There is no encoder named {name!r}. Known ones: {', '.join(ENCODERS)}.")
    if name == "statistics":
        if source:
            raise InputError(f"The encoder 'statistics' has no weights; leave out its source {source!r}.")
        return ImageStatistics()
    from baps.adapters.visual_prompt.networks import load_network

    return load_network(name, source)
