from __future__ import annotations

import torch
from torch.nn import functional as F

from baps.fseft.models import FoundationModel


def test_images_of_a_batch_are_independent(unet: FoundationModel, small_images: torch.Tensor) -> None:
    with torch.no_grad():
        together, alone = unet(small_images), unet(small_images[1:])
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)


def test_one_image_is_normalised_as_published(unet: FoundationModel) -> None:
    """As batch normalisation in training mode with a batch of one image."""
    norm = unet.body.get_submodule("down_tr64.ops.0.bn1")
    weight, bias = torch.linspace(0.5, 2, 32), torch.linspace(-1, 1, 32)
    x = 3 * torch.randn((1, 32, 4, 5, 6), generator=torch.Generator().manual_seed(0)) + 1
    before = {name: value.detach().clone() for name, value in norm.named_parameters()}
    with torch.no_grad():
        for name, value in (("weight", weight), ("bias", bias)):
            norm.get_parameter(name).copy_(value)
        result = norm(x)
        for name, value in before.items():
            norm.get_parameter(name).copy_(value)
    torch.testing.assert_close(result, F.batch_norm(x, None, None, weight, bias, training=True))
