"""Published checkpoints as their authors' training code writes them, and what their networks answer.

The networks are written here anew, with MONAI's and torch's own layers, so that the project's code is not its own
ruler.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks.nets import SwinUNETR
from torch import nn
from torch.nn import functional as F

State = dict[str, torch.Tensor]


class _Merging(nn.Module):
    """MONAI 0.9's ``PatchMerging``: two of the eight neighbours are joined twice, and two never."""

    def __init__(self, dim: int, norm_layer: type[nn.Module] = nn.LayerNorm, spatial_dims: int = 3) -> None:
        super().__init__()
        assert spatial_dims == 3
        self.reduction, self.norm = nn.Linear(8 * dim, 2 * dim, bias=False), norm_layer(8 * dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        even, odd = slice(0, None, 2), slice(1, None, 2)
        joined = [
            x[:, even, even, even], x[:, odd, even, even], x[:, even, odd, even], x[:, even, even, odd],
            x[:, odd, even, odd], x[:, even, odd, even], x[:, even, even, odd], x[:, odd, odd, odd],
        ]  # fmt: skip
        result: torch.Tensor = self.reduction(self.norm(torch.cat(joined, -1)))
        return result


class _DoubleConvolution(nn.Module):
    """Two convolutions, each with a norm that always uses the batch's own mean and variance."""

    def __init__(self, inputs: int, middle: int, outputs: int) -> None:
        super().__init__()
        self.ops = nn.Sequential(*(self._one(*pair) for pair in ((inputs, middle), (middle, outputs))))

    @staticmethod
    def _one(inputs: int, outputs: int) -> nn.Module:
        layer = nn.Module()
        layer.conv1, layer.bn1 = nn.Conv3d(inputs, outputs, 3, padding=1), nn.BatchNorm3d(outputs)
        return layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.ops:
            y: Any = layer
            x = F.relu(F.batch_norm(y.conv1(x), None, None, y.bn1.weight, y.bn1.bias, True, 0.1, 1e-5))
        return x


class _UNet(nn.Module):
    """The U-Net of Models Genesis."""

    def __init__(self) -> None:
        super().__init__()
        for level, (inputs, outputs) in enumerate(((1, 64), (64, 128), (128, 256), (256, 512))):
            self.add_module(f"down_tr{64 << level}", _DoubleConvolution(inputs, outputs // 2, outputs))
        for level in (256, 128, 64):
            up = _DoubleConvolution(3 * level, level, level)
            up.add_module("up_conv", nn.ConvTranspose3d(2 * level, 2 * level, 2, stride=2))
            self.add_module(f"up_tr{level}", up)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        skipped = []
        for level in (64, 128, 256):
            skipped.append(self.get_submodule(f"down_tr{level}")(x))
            x = F.max_pool3d(skipped[-1], 2)
        coarsest = x = self.get_submodule("down_tr512")(x)
        for level in (256, 128, 64):
            up: Any = self.get_submodule(f"up_tr{level}")
            x = up(torch.cat([up.up_conv(x), skipped.pop()], 1))
        return coarsest, x


class _Swin(SwinUNETR):
    """The authors' Swin UNETR, which has no head of its own."""

    def __init__(self, features: int) -> None:
        super().__init__(in_channels=1, out_channels=1, feature_size=features, downsample=_Merging)
        del self.out

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.swinViT(x, True)
        coarsest = self.encoder10(hidden[4])
        up = self.decoder3(
            self.decoder4(self.decoder5(coarsest, hidden[3]), self.encoder4(hidden[2])), self.encoder3(hidden[1])
        )
        return coarsest, self.decoder1(self.decoder2(up, self.encoder2(hidden[0])), self.encoder1(x))


class UniversalModel(nn.Module):
    """A backbone with the text-driven head, as grouped convolutions with generated weights.

    Args:
        unet: whether the backbone is a U-Net rather than a Swin UNETR.
        classes: number of classes.
    """

    def __init__(self, unet: bool, classes: int) -> None:
        super().__init__()
        channels, coarsest = (64, 512) if unet else (48, 768)
        self.backbone = _UNet() if unet else _Swin(48)
        self.precls_conv = nn.Sequential(nn.GroupNorm(16, channels), nn.ReLU(), nn.Conv3d(channels, 8, 1))
        self.GAP = nn.Sequential(
            nn.GroupNorm(16, coarsest), nn.ReLU(), nn.AdaptiveAvgPool3d((1, 1, 1)), nn.Conv3d(coarsest, 256, 1)
        )
        self.controller = nn.Conv3d(512, 153, 1)
        self.register_buffer("organ_embedding", torch.randn(classes, 512))
        self.text_to_vision = nn.Linear(512, 256)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits, (B, K, H, W, D)."""
        return torch.cat([self._answer(image[None]) for image in images])

    def _answer(self, image: torch.Tensor) -> torch.Tensor:
        coarsest, features = self.backbone(image)
        words = F.relu(self.text_to_vision(self.get_buffer("organ_embedding")))
        classes = len(words)
        seen = self.GAP(coarsest).view(1, 256).repeat(classes, 1)
        generated = self.controller(torch.cat([seen, words], 1).view(classes, 512, 1, 1, 1)).view(classes, 153)
        x = self.precls_conv(features).repeat(1, classes, 1, 1, 1)
        for weights, biases, outputs in ((0, 136, 8), (64, 144, 8), (128, 152, 1)):
            weight = generated[:, weights : weights + 8 * outputs].reshape(classes * outputs, 8, 1, 1, 1)
            bias = generated[:, biases : biases + outputs].reshape(-1)
            x = F.conv3d(x if weights == 0 else F.relu(x), weight, bias, groups=classes)
        return x


def new_universal(unet: bool, classes: int) -> UniversalModel:
    """Build one with fixed random weights whose norms and biases are not those of a new network."""
    with torch.random.fork_rng():
        torch.manual_seed(classes)
        model = UniversalModel(unet, classes)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


def parallel_state(model: nn.Module) -> State:
    """Return the state of a model that is trained on several GPUs: its names begin with ``module.``."""
    return dict(nn.DataParallel(model).state_dict())


def save_universal(path: Path, model: nn.Module, state: State | None = None) -> None:
    """Write the file of SuPreM and CLIP-driven."""
    torch.save({"net": state or parallel_state(model), **_optimiser(model), "epoch": 2100}, path)


def save_btcv(path: Path, model: nn.Module, **beside: object) -> None:
    """Write the file of MONAI's BTCV training, whose accuracy is numpy's mean of an array."""
    accuracy = np.mean(np.array([0.81, 0.79], np.float32))
    torch.save(
        {"epoch": 4999, "best_acc": accuracy, "state_dict": model.state_dict(), **_optimiser(model), **beside}, path
    )


def save_selfsup(path: Path, state: State) -> None:
    """Write the file of MONAI's self-supervised pre-training."""
    torch.save({"global_step": 45000, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}, path)


def btcv_model() -> SwinUNETR:
    """Build the BTCV network with fixed random weights, and 12 features instead of 48."""
    with torch.random.fork_rng():
        torch.manual_seed(14)
        return SwinUNETR(in_channels=1, out_channels=14, feature_size=12, downsample=_Merging).eval()


def _optimiser(model: nn.Module) -> dict[str, object]:
    """Return the states of optimiser and scheduler after a step of training."""
    last: Sequence[nn.Parameter] = list(model.parameters())[-2:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-5)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 800)
    kept = [parameter.detach().clone() for parameter in last]
    for parameter in last:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    scheduler.step()
    with torch.no_grad():
        for parameter, value in zip(last, kept, strict=True):
            parameter.grad = None
            parameter.copy_(value)
    return {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
