"""What a training may be asked for, for those who offer it: nothing heavy is imported."""

from __future__ import annotations

METHOD_NAMES = (
    "landmarks", "spatial", "linear_probe", "spatial_pointwise", "output", "lora", "adaptformer", "compacter",
    "affine_ln", "bias", "decoder", "full", "scratch",
)  # fmt: skip
"""Names of ``adapters.METHODS``; the first holds unless another is asked for."""

MOST_EPOCHS = 200
"""Of a fit, as published."""
