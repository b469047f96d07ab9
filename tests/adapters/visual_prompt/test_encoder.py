from __future__ import annotations

import sys

import pytest
import torch

from baps.adapters.visual_prompt import STATISTICS, image_statistics, load_encoder
from baps.errors import BapsError, InputError


def test_statistics_are_the_default() -> None:
    encoder = load_encoder()
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)).float()
    features = encoder.features(images.requires_grad_())
    assert torch.equal(features, image_statistics(images))
    assert not features.requires_grad
    assert (encoder.name, encoder.length) == ("statistics", STATISTICS)
    assert load_encoder(**{key: encoder.to_dict()[key] for key in ("name", "source")}).to_dict() == encoder.to_dict()


def test_error_for_an_unknown_encoder_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="'sam'.*statistics, clip, vit_mae, dino"):
        load_encoder("sam")


def test_statistics_take_no_source() -> None:
    with pytest.raises(InputError, match="'statistics' has no weights.*'openai/clip'"):
        load_encoder("statistics", "openai/clip")


@pytest.mark.parametrize(("name", "package"), [("clip", "transformers"), ("vit_mae", "transformers"), ("dino", "timm")])
def test_error_names_the_missing_extra(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BapsError, match=rf"The encoder '{name}' needs .*pip install 'baps-monailabel\[encoders\]'"):
        load_encoder(name, "/not/read")


def test_dino_has_no_default_source() -> None:
    with pytest.raises(InputError, match=r"'dino' has no default source. Fetch https://.*dino_resnet50_pretrain.pth"):
        load_encoder("dino")
