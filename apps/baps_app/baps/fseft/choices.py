"""The choices and constants of a training, for those who offer or read them; this module imports nothing heavy."""

from __future__ import annotations

METHOD_NAMES = (
    "landmarks", "spatial", "linear_probe", "spatial_pointwise", "output", "lora", "adaptformer", "compacter",
    "affine_ln", "bias", "decoder", "full", "scratch",
)  # fmt: skip
"""Names of ``adapters.METHODS``; the first is the default."""

MAX_EPOCHS = 200
"""Maximum number of epochs of a fit, as published."""

MIN_DICE = 0.5
"""Dice (0 to 1) that an adapter must reach if the model does not know the organ, because any mask is better than none.
"""
