"""Run models on whole volumes: window by window, of the size used in training, blended."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.inferers import sliding_window_inference

from baps.fseft.adapters import FewShotAdapter, ModelOutput
from baps.fseft.models import FoundationModel
from baps.fseft.preprocessing import WindowSides

_SLAB = 16
_OVERLAP = 0.25
"""Overlap of neighbouring windows, as published."""


@torch.no_grad()
def compute_inputs(
    model: FoundationModel, input_kind: ModelOutput, image: torch.Tensor, side: WindowSides = 96
) -> torch.Tensor:
    """Run the frozen model on a volume: the expensive half, which is done once.

    Args:
        model: the foundation model, on its device.
        input_kind: what the adapter reads, see ``ModelOutput``.
        image: (1, H, W, D) in [0, 1], see ``preprocess``.
        side: sides of the sliding window, voxels.

    Returns:
        On the CPU: the image itself; features (C, H, W, D) float32; or probabilities (K, H, W, D).
    """
    if input_kind == "images":
        return image
    model.eval()
    run_model = model.features if input_kind == "features" else lambda window: model(window).sigmoid()
    return _sliding_windows(run_model, image, side, next(model.parameters()).device)


@torch.no_grad()
def segment(adapter: FewShotAdapter, inputs: torch.Tensor, side: WindowSides = 96) -> torch.Tensor:
    """Run an adapter on its inputs: the cheap half.

    Args:
        adapter: the adapter, on its device.
        inputs: the inputs, see ``compute_inputs``.
        side: sides of the sliding window of an adapter that reads images, voxels.

    Returns:
        Probabilities of the organ, (1, H, W, D), on the CPU.
    """
    adapter.eval()
    device = next(adapter.parameters()).device
    if adapter.input_kind == "images":
        logits = _sliding_windows(adapter, inputs, side, device)
    else:
        logits = torch.cat([_slab(adapter, inputs, start, device) for start in range(0, inputs.shape[3], _SLAB)], 3)
    return logits.sigmoid()


def _slab(adapter: FewShotAdapter, inputs: torch.Tensor, start: int, device: torch.device) -> torch.Tensor:
    """Compute the logits of a part of the last axis; all at once would need far more memory."""
    first, last = max(0, start - adapter.receptive_radius), start + _SLAB + adapter.receptive_radius
    logits = adapter(inputs[None, ..., first:last].to(device).float())[0].cpu()
    return logits[..., start - first : start - first + _SLAB]


def _sliding_windows(
    run_model: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor, side: WindowSides, device: torch.device
) -> torch.Tensor:
    output: torch.Tensor = sliding_window_inference(
        image[None], side, 1, run_model, overlap=_OVERLAP, mode="gaussian", sw_device=device, device="cpu"
    )
    return output[0]
