"""Define the small promptable model that comes with the project, a stand-in for SAM.

It is a ``segment_anything.modeling.Sam`` with a light convolutional image encoder, so ``SamPredictor`` and everything
else written for SAM accepts it. It is class-agnostic and was not trained on medical images: see MODEL_CARD.md.
"""

from __future__ import annotations

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

STRIDE = 8
"""Pixels of the model's input per cell of the image embedding, along each side."""

EMBEDDING = 128
"""Number of channels of the image embedding."""


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolution(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.second(self.first(x)))


class ConvolutionalEncoder(nn.Module):
    """Plain 3x3 convolutions down to stride 32, merged back to stride 8 from coarse to fine.

    Args:
        img_size: width and height of the input, pixels; a multiple of 32.
    """

    def __init__(self, img_size: int) -> None:
        super().__init__()
        self.img_size = img_size
        self.stem = nn.Sequential(_convolution(3, 32, 2), _convolution(32, 32))
        self.stride4 = nn.Sequential(_convolution(32, 64, 2), _Residual(64), _Residual(64))
        self.stride8 = nn.Sequential(_convolution(64, 128, 2), _Residual(128), _Residual(128))
        self.stride16 = nn.Sequential(_convolution(128, 192, 2), _Residual(192), _Residual(192))
        self.stride32 = nn.Sequential(_convolution(192, 256, 2), _Residual(256))
        self.lateral8 = nn.Conv2d(128, EMBEDDING, 1)
        self.lateral16 = nn.Conv2d(192, EMBEDDING, 1)
        self.lateral32 = nn.Conv2d(256, EMBEDDING, 1)
        self.smooth16 = _convolution(EMBEDDING, EMBEDDING)
        self.smooth8 = nn.Sequential(_convolution(EMBEDDING, EMBEDDING), nn.Conv2d(EMBEDDING, EMBEDDING, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode images.

        Args:
            x: normalised images, (B, 3, S, S).

        Returns:
            Embeddings, (B, EMBEDDING, S/8, S/8).
        """
        x8 = self.stride8(self.stride4(self.stem(x)))
        x16 = self.stride16(x8)
        top = self.lateral32(self.stride32(x16))
        middle = self.smooth16(self.lateral16(x16) + _twice(top))
        return self.smooth8(self.lateral8(x8) + _twice(middle))


def _twice(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def build_bundled_model(img_size: int) -> Sam:
    """Build the untrained model.

    The weights do not depend on the size of the input: the encoder is convolutional, and positions are Fourier
    features.

    Args:
        img_size: width and height of the input, pixels; a multiple of 32.

    Returns:
        The model.

    Raises:
        ValueError: if the size is not a positive multiple of 32.
    """
    if img_size % 32 or img_size <= 0:
        raise ValueError(f"img_size must be a positive multiple of 32, not {img_size}.")
    cells = img_size // STRIDE
    return Sam(
        image_encoder=ConvolutionalEncoder(img_size),
        prompt_encoder=PromptEncoder(
            embed_dim=EMBEDDING,
            image_embedding_size=(cells, cells),
            input_image_size=(img_size, img_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=EMBEDDING, mlp_dim=256, num_heads=4),
            transformer_dim=EMBEDDING,
            iou_head_depth=2,
            iou_head_hidden_dim=64,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )
