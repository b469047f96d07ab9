from __future__ import annotations

import pytest
import torch

from baps.errors import InputError
from baps.fseft.models import FoundationModel, build_swin_unetr, build_unet


@pytest.mark.parametrize("name", ["swin", "unet"])
def test_logits_are_the_head_on_the_features(
    name: str, request: pytest.FixtureRequest, images: torch.Tensor, small_images: torch.Tensor
) -> None:
    model: FoundationModel = request.getfixturevalue(name)
    model_images = images if name == "swin" else small_images
    with torch.no_grad():
        features, logits = model.features(model_images), model(model_images)
    assert features.shape == (len(model_images), model.channels, *model_images.shape[2:])
    assert logits.shape == (len(model_images), 3, *model_images.shape[2:])
    assert model.head is not None
    weight, bias = model.head.weight[:, :, 0, 0, 0], model.head.bias
    assert bias is not None
    expected = torch.einsum("kc,bchwd->bkhwd", weight, features) + bias[:, None, None, None]
    torch.testing.assert_close(logits, expected.detach(), rtol=1e-4, atol=1e-4)


def test_published_models_have_the_published_size() -> None:
    """62.2 M parameters (Silva-Rodriguez et al.)."""
    swin, unet = build_swin_unetr(["x"] * 29), build_unet(["x"])
    assert (swin.channels, unet.channels) == (48, 64)
    assert sum(p.numel() for p in swin.parameters()) == pytest.approx(62.2e6, rel=1e-3)


def test_index_of_classes(swin: FoundationModel) -> None:
    assert [swin.index(organ) for organ in ("spleen", "liver", "aorta", "heart")] == [0, 1, 2, None]


@pytest.mark.parametrize("shape", [(1, 1, 64, 64, 65), (1, 1, 32, 64, 64), (1, 2, 64, 64, 64), (64, 64, 64)])
def test_other_shapes_are_refused(swin: FoundationModel, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="multiples of 32 and at least twice as long"):
        swin.features(torch.zeros(shape))


def test_without_a_head_there_are_features_only(small_images: torch.Tensor) -> None:
    model = build_unet([])
    with torch.no_grad():
        assert model.features(small_images).shape[1] == 64
    with pytest.raises(InputError, match="no linear head"):
        model(small_images)


def test_encoder_and_decoder_do_not_overlap(swin: FoundationModel, unet: FoundationModel) -> None:
    for model in (swin, unet):
        encoder = {id(p) for part in model.encoder() for p in part.parameters()}
        decoder = {id(p) for part in model.decoder() for p in part.parameters()}
        assert encoder
        assert decoder
        assert not encoder & decoder
    assert encoder | decoder == {id(p) for p in unet.body.parameters()}
