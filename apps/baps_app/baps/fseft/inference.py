"""Asking for a whole volume: window by window, as large as in training, blended."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.inferers import sliding_window_inference

from baps.fseft.adapters import Answer, FewShotAdapter
from baps.fseft.models import FoundationModel

_SLAB = 16
_OVERLAP = 0.25
"""Of neighbouring windows, as published."""


@torch.no_grad()
def read(model: FoundationModel, reads: Answer, image: torch.Tensor, side: int = 96) -> torch.Tensor:
    """What an adapter reads of a volume: the heavy half, which is done once; on the CPU.

    Args:
        model: as it came, on its device.
        reads: see ``Answer``.
        image: (1, H, W, D) in [0, 1], see ``prepare``.
        side: of the windows, voxels.

    Returns:
        The image itself; features (C, H, W, D), 4 C bytes a voxel; or probabilities (K, H, W, D).
    """
    if reads == "images":
        return image
    model.eval()
    ask = model.features if reads == "features" else lambda window: model(window).sigmoid()
    return _windows(ask, image, side, next(model.parameters()).device)


@torch.no_grad()
def segment(adapter: FewShotAdapter, inputs: torch.Tensor, side: int = 96) -> torch.Tensor:
    """The light half: probabilities (1, H, W, D) of an organ, on the CPU.

    Args:
        adapter: on its device.
        inputs: what ``read`` gave.
        side: of the windows of an adapter that reads images, voxels.
    """
    adapter.eval()
    device = next(adapter.parameters()).device
    if adapter.reads == "images":
        logits = _windows(adapter, inputs, side, device)
    else:
        logits = torch.cat([_slab(adapter, inputs, start, device) for start in range(0, inputs.shape[3], _SLAB)], 3)
    return logits.sigmoid()


def _slab(adapter: FewShotAdapter, inputs: torch.Tensor, start: int, device: torch.device) -> torch.Tensor:
    """Logits of some of the last axis; the whole at once would need far more memory."""
    first, last = max(0, start - adapter.reach), start + _SLAB + adapter.reach
    logits = adapter(inputs[None, ..., first:last].to(device).float())[0].cpu()
    return logits[..., start - first : start - first + _SLAB]


def _windows(
    ask: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor, side: int, device: torch.device
) -> torch.Tensor:
    found: torch.Tensor = sliding_window_inference(
        image[None], side, 1, ask, overlap=_OVERLAP, mode="gaussian", sw_device=device, device="cpu"
    )
    return found[0]
