"""Networks with random weights, in files of the real format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from baps.adapters.adapter import Adapter
from baps.adapters.visual_prompt import KINDS, build_visual_prompt, load_encoder, to_pixels, visual_prompt_from_record
from baps.blackbox.weights import sha256
from baps.errors import BapsError
from baps.prompts import Prompt

transformers = pytest.importorskip("transformers", reason="the extra 'encoders' is not installed")
timm = pytest.importorskip("timm", reason="the extra 'encoders' is not installed")

NETWORKS = ("clip", "vit_mae", "dino")
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TINY = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 56,
    "image_size": 224,
}  # fmt: skip


def _images(side: int = 224, count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(0)).float()


def _clip(**settings: Any) -> Any:
    config = transformers.CLIPVisionConfig(**{**TINY, "projection_dim": 24, **settings})
    return transformers.CLIPVisionModelWithProjection(config).eval()


def _vit_mae(**settings: Any) -> Any:
    return transformers.ViTMAEModel(transformers.ViTMAEConfig(**{**TINY, **settings})).eval()


def _dino() -> Any:
    """Make a network whose state differs from a new one, whose batch norm would hide errors."""
    model = timm.create_model("resnet50", num_classes=0)
    model.train()(torch.randn(4, 3, 64, 64))
    return model.eval()


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {"clip": _clip(), "vit_mae": _vit_mae(), "dino": _dino()}


@pytest.fixture(scope="module")
def sources(models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("encoders")
    for name in ("clip", "vit_mae"):
        models[name].save_pretrained(folder / name)
    save_file(models["dino"].state_dict(), folder / "dino.safetensors")
    return {"clip": folder / "clip", "vit_mae": folder / "vit_mae", "dino": folder / "dino.safetensors"}


@pytest.mark.parametrize(("name", "length"), [("clip", 24), ("vit_mae", 32), ("dino", 2048)])
@pytest.mark.parametrize("side", [224, 96, 300])
def test_number_of_features(sources: dict[str, Path], name: str, length: int, side: int) -> None:
    encoder = load_encoder(name, str(sources[name]))
    images = _images(side)
    features = encoder.features(images.requires_grad_())
    assert (encoder.name, encoder.length) == (name, length)
    assert (features.shape, features.dtype, features.requires_grad) == ((3, length), torch.float32, False)
    assert torch.equal(features, encoder.features(images))
    for row in range(3):
        alone = encoder.features(images[row : row + 1])[0]
        torch.testing.assert_close(alone, features[row], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(features[0], features[1], atol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_features_equal_the_models_with_its_own_preprocessing(
    models: dict[str, Any], sources: dict[str, Path], name: str
) -> None:
    images = _images()
    mean, std = (CLIP_MEAN, CLIP_STD) if name == "clip" else (IMAGENET_MEAN, IMAGENET_STD)
    x = (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        if name == "clip":
            expected = models[name](x).image_embeds
        elif name == "vit_mae":
            models[name].config.mask_ratio = 0.0
            expected = models[name](x).last_hidden_state[
                :, 0
            ]  # Shuffled again; the class token does not depend on the order.
        else:
            expected = models[name].forward_features(x).mean((2, 3))
    result = load_encoder(name, str(sources[name])).features(images)
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)


def test_vit_mae_sees_every_patch(sources: dict[str, Path]) -> None:
    encoder = load_encoder("vit_mae", str(sources["vit_mae"]))
    image = _images(count=1)
    plain = encoder.features(image)
    for row in range(4):
        for column in range(4):
            other = image.clone()
            other[..., row * 56 : row * 56 + 56, column * 56 : column * 56 + 56] = 255
            assert not torch.allclose(encoder.features(other), plain, atol=1e-5), (row, column)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "model_class", "config_class", "length"),
    [
        ("clip", "CLIPVisionModelWithProjection", "CLIPVisionConfig", 512),
        ("vit_mae", "ViTMAEModel", "ViTMAEConfig", 768),
    ],
)
def test_default_configurations_have_the_published_size(
    tmp_path: Path, name: str, model_class: str, config_class: str, length: int
) -> None:
    """The defaults of the configurations are ViT-B/32 and the base ViT-MAE."""
    config = getattr(transformers, config_class)()
    getattr(transformers, model_class)(config).save_pretrained(tmp_path)
    encoder = load_encoder(name, str(tmp_path))
    assert encoder.features(_images(64, 1)).shape == (1, length)
    visual_prompt = build_visual_prompt("concat", encoder=encoder)
    assert sum(parameter.numel() for parameter in visual_prompt.parameters()) == {512: 304_706, 768: 453_267}[length]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_loaded_once(sources: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder(name, str(sources[name]))
    monkeypatch.chdir(sources[name].parent)
    assert load_encoder(name, sources[name].name) is encoder
    weights = sources[name] if name == "dino" else sources[name] / "model.safetensors"
    assert encoder.to_dict() == {"name": name, "source": str(sources[name]), "sha256": sha256(weights)}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", KINDS)
def test_visual_prompt_is_rebuilt_with_its_encoder(sources: dict[str, Path], kind: str, name: str) -> None:
    visual_prompt = build_visual_prompt(kind, 3, "click", load_encoder(name, str(sources[name])))
    with torch.no_grad():
        for parameter in visual_prompt.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    record = json.loads(json.dumps(visual_prompt.to_dict()))
    results = visual_prompt_from_record(record)
    results.load_state_dict(visual_prompt.state_dict())
    pixels, prompts = to_pixels(_images(64, 2)), [Prompt(((9.0, 9.0),)), Prompt(((30.0, 3.0),))]
    crops = Adapter(visual_prompt).crop(pixels, prompts)
    changed = Adapter(visual_prompt).transform_images(crops)
    assert (changed != pixels).any()
    assert (Adapter(results).transform_images(crops) == changed).all()
    assert results.to_dict() == visual_prompt.to_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_holds_no_weights_of_the_encoder(sources: dict[str, Path], kind: str) -> None:
    encoder = load_encoder("clip", str(sources["clip"]))
    visual_prompt = build_visual_prompt(kind, encoder=encoder)
    theirs = {value.data_ptr() for value in encoder._network.state_dict().values()}  # type: ignore[attr-defined]
    assert not theirs & {value.data_ptr() for value in visual_prompt.state_dict().values()}
    assert not any("encoder" in key or "vision" in key for key in visual_prompt.state_dict())
    assert not any("encoder" in key for key, _ in visual_prompt.named_parameters())


def test_other_weights_than_recorded_are_refused(sources: dict[str, Path]) -> None:
    record = build_visual_prompt("basis", encoder=load_encoder("clip", str(sources["clip"]))).to_dict()
    record["encoder"]["sha256"] = "0" * 64
    with pytest.raises(BapsError, match=f"'clip' whose SHA-256 is {'0' * 64}.*{sources['clip']} has.*train anew"):
        visual_prompt_from_record(record)


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.backbone."])
def test_training_checkpoint_is_read(
    models: dict[str, Any], sources: dict[str, Path], tmp_path: Path, prefix: str
) -> None:
    state = {prefix + key: value for key, value in models["dino"].state_dict().items()}
    torch.save({**state, "module.head.mlp.0.weight": torch.zeros(2, 2)}, tmp_path / "dino.pth")
    images = _images(64, 1)
    expected = load_encoder("dino", str(sources["dino"])).features(images)
    assert torch.equal(load_encoder("dino", str(tmp_path / "dino.pth")).features(images), expected)


def test_dino_is_read_from_a_folder(models: dict[str, Any], sources: dict[str, Path], tmp_path: Path) -> None:
    save_file(models["dino"].state_dict(), tmp_path / "model.safetensors")
    images = _images(64, 1)
    expected = load_encoder("dino", str(sources["dino"])).features(images)
    assert torch.equal(load_encoder("dino", str(tmp_path)).features(images), expected)


def test_half_precision_is_converted(tmp_path: Path) -> None:
    _clip().half().save_pretrained(tmp_path)
    assert load_encoder("clip", str(tmp_path)).features(_images(64, 1)).dtype == torch.float32


@pytest.mark.parametrize(("name", "other_name"), [("clip", "vit_mae"), ("vit_mae", "clip"), ("dino", "clip")])
def test_another_network_is_refused(sources: dict[str, Path], name: str, other_name: str) -> None:
    with pytest.raises(BapsError, match=f"does not hold the weights of .*'{name}' needs. Give the folder"):
        load_encoder(name, str(sources[other_name]))


@pytest.mark.parametrize("name", NETWORKS)
def test_incomplete_weights_are_refused(sources: dict[str, Path], tmp_path: Path, name: str) -> None:
    """transformers would initialise the rest at random."""
    source = sources[name] if name == "dino" else sources[name] / "model.safetensors"
    state = load_file(source)
    del state[next(key for key in state if key.endswith("weight"))]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    if name != "dino":
        (tmp_path / "config.json").write_bytes((sources[name] / "config.json").read_bytes())
    with pytest.raises(BapsError, match="does not hold the weights"):
        load_encoder(name, str(tmp_path))


def test_a_deeper_resnet_is_refused(models: dict[str, Any], tmp_path: Path) -> None:
    """A ResNet-101 has all tensors of a ResNet-50, and more."""
    extra = {"layer3.6.conv1.weight": torch.zeros(256, 1024, 1, 1)}
    save_file({**models["dino"].state_dict(), **extra}, tmp_path / "deeper.safetensors")
    with pytest.raises(BapsError, match="does not hold the weights of a ResNet-50"):
        load_encoder("dino", str(tmp_path / "deeper.safetensors"))


@pytest.mark.parametrize(("name", "make"), [("clip", _clip), ("vit_mae", _vit_mae)])
def test_model_of_another_image_size_is_refused(tmp_path: Path, name: str, make: Any) -> None:
    make(image_size=112).save_pretrained(tmp_path)
    with pytest.raises(BapsError, match="for images of 224 pixels"):
        load_encoder(name, str(tmp_path))


@pytest.mark.parametrize("name", ["clip", "vit_mae"])
def test_pickles_are_refused(sources: dict[str, Path], tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_bytes((sources[name] / "config.json").read_bytes())
    torch.save(load_file(sources[name] / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(BapsError, match="is not a folder that holds model.safetensors"):
        load_encoder(name, str(tmp_path))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_broken_file_is_refused(sources: dict[str, Path], tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    (tmp_path / "config.json").write_bytes((sources["clip"] / "config.json").read_bytes())
    with pytest.raises(BapsError, match="model.safetensors (does not hold the weights|cannot be read)"):
        load_encoder(name, str(tmp_path))


@pytest.mark.parametrize("name", NETWORKS)
def test_error_names_the_missing_path(name: str) -> None:
    with pytest.raises(BapsError, match="'/no/such/model' does not exist. Give a folder on this machine, or a hub id"):
        load_encoder(name, "/no/such/model")
