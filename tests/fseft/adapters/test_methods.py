"""Every method: number of trained parameters, initial output, and models that it applies to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from monai.networks.nets import SwinUNETR
from torch import nn

from baps.errors import InputError
from baps.fseft.adaptation import OrganSettings
from baps.fseft.adapters import METHODS, FewShotAdapter, build_adapter, unsupported_reason
from baps.fseft.landmarks import add_landmarks
from baps.fseft.models import FoundationModel, build_swin_unetr, build_unet

BLOCK_CHANNELS = 2 * (48 + 96 + 192 + 384)
"""Of all eight blocks of the published Swin UNETR together."""


@pytest.fixture(scope="module")
def published() -> FoundationModel:
    return build_swin_unetr([f"organ {n}" for n in range(29)])


@pytest.fixture(scope="module")
def swin_answer(swin: FoundationModel, images: torch.Tensor) -> torch.Tensor:
    """Compute the logits of ``swin``, (1, classes, 64, 64, 64)."""
    with torch.no_grad():
        return swin(images)


def _count(adapter: FewShotAdapter) -> int:
    return sum(value.numel() for value in adapter.trainable_parameters().values())


def _answer(adapter: FewShotAdapter, model: FoundationModel, images: torch.Tensor) -> torch.Tensor:
    """Compute the logits of an adapter."""
    with torch.no_grad():
        if adapter.input_kind == "images":
            return adapter(images)
        if adapter.input_kind == "landmarks":
            return adapter(add_landmarks(model, images[0], model.features(images)[0], 3.0)[None].float())
        return adapter(model.features(images) if adapter.input_kind == "features" else model(images).sigmoid())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("linear_probe", 49),
        ("spatial_pointwise", 4_657),
        ("spatial", 124_465),
        ("lora", 69_169),
        ("adaptformer", 47_697),
        ("affine_ln", 17_329),
        # A block: qkv 3C, projection C, perceptron 5C, and a table of (2 * 7 - 1)^3 positions per attention head; head.
        ("bias", 9 * BLOCK_CHANNELS + 2 * (3 + 6 + 12 + 24) * 13**3 + 49),
        # A block, twice: 4 x 4 x 4, 4 of C/4 x C/4, and C biases; Affine-LN, with the head.
        ("compacter", 2 * 2 * sum(64 + 4 * (c // 4) ** 2 + c for c in (48, 96, 192, 384)) + 17_329),
        ("landmarks", 49 + (2 * 49 + 3 * 29 + 1) * 32 + 33 * 32 + 32),
        ("output", 29 + 1 + 8 * (29 * 27 + 1) + 8 * 27),
    ],
)
def test_number_of_parameters_is_as_published(published: FoundationModel, name: str, count: int) -> None:
    """For a Swin UNETR with 48 features and a binary head (Silva-Rodriguez et al.)."""
    assert _count(build_adapter(name, published, "organ 3")) == count


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("bias", lambda name: ("attn" in name or "mlp" in name) and "bias" in name),
        ("affine_ln", lambda name: "norm" in name),
    ],
)
def test_parameters_are_those_of_the_authors_rule(
    published: FoundationModel, name: str, rule: Callable[[str], bool]
) -> None:
    """The authors choose by the names of MONAI's network, all within its ``swinViT``."""
    network = SwinUNETR(in_channels=1, out_channels=1, feature_size=48)
    expected = {
        f"model.body.{key}" for key, _ in network.named_parameters() if key.startswith("swinViT.") and rule(key)
    }
    trained = set(build_adapter(name, published, "organ 3").trainable_parameters())
    assert trained - {"model.head.weight", "model.head.bias"} == expected


def test_biases_of_the_unet_are_all_of_its_encoder(unet: FoundationModel) -> None:
    expected = {f"model.body.{key}" for key, _ in unet.body.named_parameters() if "down_tr" in key and "bias" in key}
    trained = set(build_adapter("bias", unet, "liver").trainable_parameters())
    assert trained - {"model.head.weight", "model.head.bias"} == expected


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("linear_probe", 1e-2),
        ("spatial", 1e-4),
        ("lora", 1e-3),
        ("adaptformer", 1e-2),
        ("compacter", 1e-2),
        ("affine_ln", 1e-2),
        ("bias", 1e-2),
        ("decoder", 1e-4),
        ("full", 1e-4),
        ("scratch", 1e-4),
    ],
)
def test_rates_are_as_published(name: str, rate: float) -> None:
    """Those of ``fseft/configs.py`` of the authors' repository, where ``decoder`` is the probe with a tuned decoder."""
    assert METHODS[name].rate == rate
    assert OrganSettings(name).fit_settings().learning_rate == rate
    if METHODS[name].tunes_encoder:
        assert OrganSettings(name, decoder=True).fit_settings().learning_rate == 1e-4
        assert OrganSettings(name, decoder=True, learning_rate=0.5).fit_settings().learning_rate == 0.5


def test_full_trains_all_parameters(swin: FoundationModel) -> None:
    in_all = sum(p.numel() for p in swin.body.parameters()) + swin.channels + 1
    assert _count(build_adapter("full", swin, "liver")) == in_all
    assert _count(build_adapter("scratch", swin, "liver")) == in_all


def test_decoder_alone_or_with_another_method(swin: FoundationModel) -> None:
    decoder = sum(p.numel() for part in swin.decoder() for p in part.parameters())
    assert _count(build_adapter("decoder", swin, "liver")) == decoder + 13
    alone = _count(build_adapter("lora", swin, "liver"))
    assert _count(build_adapter("lora", swin, "liver", decoder=True)) == alone + decoder
    with pytest.raises(InputError, match="cannot train the decoder"):
        build_adapter("spatial", swin, "liver", decoder=True)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "scratch"])
def test_untrained_adapter_equals_the_model(
    swin: FoundationModel, swin_answer: torch.Tensor, images: torch.Tensor, name: str
) -> None:
    adapter = build_adapter(name, swin, "liver", seed=3)
    expected = swin_answer[:, 1:2].sigmoid()
    rounded = 1e-3 if adapter.input_kind == "landmarks" else 1e-6
    torch.testing.assert_close(_answer(adapter, swin, images).sigmoid(), expected, rtol=0, atol=rounded)


@pytest.mark.parametrize("name", ["linear_probe", "spatial", "output", "bias", "decoder", "full"])
def test_untrained_adapter_equals_the_unet(unet: FoundationModel, small_images: torch.Tensor, name: str) -> None:
    assert unsupported_reason(name, unet) == ""
    with torch.no_grad():
        expected = unet(small_images)[:, 2:].sigmoid()
    adapter = build_adapter(name, unet, "aorta")
    torch.testing.assert_close(_answer(adapter, unet, small_images).sigmoid(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["lora", "adaptformer", "compacter", "affine_ln"])
def test_methods_that_do_not_apply_to_a_unet(unet: FoundationModel, name: str) -> None:
    assert "has none" in unsupported_reason(name, unet)
    with pytest.raises(InputError, match="changes transformer blocks"):
        build_adapter(name, unet, "aorta")


def test_new_organ_has_a_new_head(unet: FoundationModel, small_images: torch.Tensor) -> None:
    first, second = (build_adapter("linear_probe", unet, "heart", seed=seed) for seed in (0, 1))
    assert not torch.equal(_answer(first, unet, small_images), _answer(second, unet, small_images))
    again = build_adapter("linear_probe", unet, "heart", seed=0)
    assert torch.equal(_answer(first, unet, small_images), _answer(again, unet, small_images))
    nothing = _answer(build_adapter("output", unet, "heart"), unet, small_images)
    assert torch.equal(nothing, torch.zeros_like(nothing))


@pytest.mark.parametrize("name", ["lora", "adaptformer", "compacter", "affine_ln", "bias", "full", "decoder"])
def test_every_trained_weight_has_a_gradient(swin: FoundationModel, images: torch.Tensor, name: str) -> None:
    """Each trained weight, and no other, gets a gradient once training has changed the initial values."""
    adapter = build_adapter(name, swin, "liver")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in adapter.trainable_parameters().values():
            value.add_(0.05 * torch.randn(value.shape, generator=generator))
    adapter(images).square().mean().backward()
    without = [k for k, v in adapter.trainable_parameters().items() if v.grad is None or not v.grad.any()]
    assert without == []
    assert all(value.grad is None for value in adapter.parameters() if not value.requires_grad)


def test_model_is_not_changed(swin: FoundationModel) -> None:
    before = {key: value.clone() for key, value in swin.state_dict().items()}
    for name in ("lora", "adaptformer", "compacter", "full", "scratch"):
        adapter = build_adapter(name, swin, "liver")
        with torch.no_grad():
            for value in adapter.trainable_parameters().values():
                value.add_(1)
    after = swin.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert swin.classes == ("spleen", "liver", "aorta")


def test_scratch_keeps_no_weight(unet: FoundationModel) -> None:
    adapter = build_adapter("scratch", unet, "liver", seed=5)
    kept_names = [
        k for k, v in unet.body.named_parameters() if torch.equal(v, adapter.get_parameter(f"model.body.{k}"))
    ]
    assert all("bn1" in key for key in kept_names), "only normalisation, which starts at 1 and 0"


@pytest.mark.parametrize("name", ["spatial_pointwise", "output", "bias"])
def test_state_contains_all_trained_weights(unet: FoundationModel, small_images: torch.Tensor, name: str) -> None:
    adapter = build_adapter(name, unet, "liver", seed=1)
    with torch.no_grad():
        for value in adapter.trainable_parameters().values():
            value.add_(0.1)
    second = build_adapter(name, unet, "liver", seed=1)
    assert not torch.equal(_answer(adapter, unet, small_images), _answer(second, unet, small_images))
    second.load_state_dict(adapter.state_dict())
    assert torch.equal(_answer(adapter, unet, small_images), _answer(second, unet, small_images))
    assert sum(value.numel() for value in adapter.state_dict().values()) == _count(adapter)


def test_state_of_another_method_is_refused(swin: FoundationModel, unet: FoundationModel) -> None:
    with pytest.raises(InputError, match="another kind of adapter"):
        build_adapter("spatial", unet, "liver").load_state_dict(build_adapter("spatial", swin, "liver").state_dict())


def test_unknown_methods_are_refused(unet: FoundationModel) -> None:
    with pytest.raises(InputError, match="no method 'magic'.*linear_probe"):
        build_adapter("magic", unet, "liver")


def test_output_adapter_requires_a_model_with_classes() -> None:
    with pytest.raises(InputError, match="reads the model's classes"):
        build_adapter("output", build_unet([]), "liver")


def test_global_random_state_is_not_changed(unet: FoundationModel) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    build_adapter("linear_probe", unet, "heart", seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_head_is_new_and_trained_in_each_method(swin: FoundationModel) -> None:
    for name in ("lora", "decoder", "bias"):
        adapter = build_adapter(name, swin, "liver")
        head = adapter.get_submodule("model.head")
        assert isinstance(head, nn.Conv3d)
        assert head.weight.requires_grad
        assert head.weight.shape[0] == 1
