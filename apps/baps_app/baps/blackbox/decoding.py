"""Run the mask decoder of segment-anything on a batch of *different* images.

``MaskDecoder.predict_masks`` repeats one image embedding for many prompts. A step of zeroth-order optimisation has one
prompt on each of many images, so here row ``i`` of the prompts belongs to row ``i`` of the embeddings. The modules and
their order are those of segment-anything, so weights and results are the same.
"""

from __future__ import annotations

import torch
from segment_anything.modeling import MaskDecoder


def decode_masks(
    decoder: MaskDecoder,
    embeddings: torch.Tensor,
    position: torch.Tensor,
    sparse: torch.Tensor,
    dense: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode one prompt per image.

    Args:
        decoder: the mask decoder.
        embeddings: image embeddings, (B, C, h, w).
        position: dense positional encoding, (1, C, h, w).
        sparse: embedded clicks and boxes, (B, N, C).
        dense: embedded mask prompts, (B, C, h, w).

    Returns:
        Mask logits, (B, M, 4h, 4w), where mask 0 is the single-mask output and the others are the alternatives; and the
        predicted IoU of each mask, (B, M).
    """
    batch = embeddings.shape[0]
    learned = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight], dim=0)
    tokens = torch.cat((learned.unsqueeze(0).expand(batch, -1, -1), sparse), dim=1)
    source = embeddings + dense
    _, channels, height, width = source.shape
    states, source = decoder.transformer(source, position.expand(batch, -1, -1, -1), tokens)
    count = decoder.num_mask_tokens
    source = source.transpose(1, 2).reshape(batch, channels, height, width)
    upscaled = decoder.output_upscaling(source)
    weights = torch.stack([decoder.output_hypernetworks_mlps[m](states[:, 1 + m]) for m in range(count)], dim=1)
    masks = torch.einsum("bmc,bchw->bmhw", weights, upscaled)
    return masks, decoder.iou_prediction_head(states[:, 0])
