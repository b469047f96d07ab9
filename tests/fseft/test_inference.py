from __future__ import annotations

import pytest
import torch
from monai.inferers import sliding_window_inference

from baps.fseft.adapters import build_adapter
from baps.fseft.inference import compute_inputs, segment
from baps.fseft.models import FoundationModel


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    """Make an image that is larger than a window along one axis and smaller along another."""
    return torch.rand((1, 24, 16, 13), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["linear_probe", "spatial", "decoder"])
def test_untrained_adapter_equals_the_sliding_window_model(
    unet: FoundationModel, image: torch.Tensor, name: str
) -> None:
    with torch.no_grad():
        logits = sliding_window_inference(image[None], 16, 1, unet, overlap=0.25, mode="gaussian")
    adapter = build_adapter(name, unet, "liver")
    result = segment(adapter, compute_inputs(unet, adapter.input_kind, image, 16), 16)
    torch.testing.assert_close(result, logits[0, 1:2].sigmoid(), rtol=0, atol=1e-5)


def test_the_output_adapter_reads_blended_probabilities(unet: FoundationModel, image: torch.Tensor) -> None:
    with torch.no_grad():
        blended = sliding_window_inference(
            image[None], 16, 1, lambda x: unet(x).sigmoid(), overlap=0.25, mode="gaussian"
        )
    probabilities = compute_inputs(unet, "probabilities", image, 16)
    torch.testing.assert_close(probabilities, blended[0])
    result = segment(build_adapter("output", unet, "aorta"), probabilities)
    torch.testing.assert_close(result, blended[0, 2:], rtol=0, atol=1e-5)


def test_inputs_of_each_kind(unet: FoundationModel, image: torch.Tensor) -> None:
    assert compute_inputs(unet, "images", image, 16) is image
    features = compute_inputs(unet, "features", image, 16)
    assert features.shape == (64, 24, 16, 13)
    assert not features.requires_grad
    assert not features.is_inference()


@pytest.mark.parametrize("name", ["spatial", "spatial_pointwise", "output", "landmarks"])
def test_slabs_equal_the_whole_volume(unet: FoundationModel, name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    adapter = build_adapter(name, unet, "liver").eval()
    for weights in adapter.trainable_parameters().values():
        torch.nn.init.normal_(weights, std=0.1, generator=generator)
    channels = {"probabilities": 3, "landmarks": 2 * 65 + 9}.get(adapter.input_kind, 64)
    inputs = torch.rand((channels, 6, 7, 37), generator=generator).half()
    with torch.no_grad():
        full_result = adapter(inputs[None].float())[0].sigmoid()
    result = segment(adapter, inputs)
    torch.testing.assert_close(result, full_result, rtol=0, atol=1e-5)
    assert result.std() > 0.01
