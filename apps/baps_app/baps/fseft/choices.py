"""The choices of a training, for those who offer them; this module imports nothing heavy."""

from __future__ import annotations

METHOD_NAMES = (
    "landmarks", "spatial", "linear_probe", "spatial_pointwise", "output", "lora", "adaptformer", "compacter",
    "affine_ln", "bias", "decoder", "full", "scratch",
)  # fmt: skip
"""Names of ``adapters.METHODS``; the first is the default."""

MAX_EPOCHS = 200
"""Maximum number of epochs of a fit, as published."""
