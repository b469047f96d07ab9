"""State dicts with the published names and shapes, made from small models, because the real files are too large."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from baps.errors import InputError
from baps.fseft.adapters import build_adapter
from baps.fseft.models import (
    FSEFT_CLASSES,
    PUBLISHED,
    FoundationModel,
    build_from_state,
    build_swin_unetr,
    build_unet,
    load_foundation_model,
)

State = dict[str, torch.Tensor]


def _swin(outputs: int = 0) -> FoundationModel:
    with torch.random.fork_rng():
        torch.manual_seed(42)
        return build_swin_unetr([str(n) for n in range(outputs)], 12)


def _unet() -> FoundationModel:
    with torch.random.fork_rng():
        torch.manual_seed(42)
        return build_unet([])


def _renamed(model: FoundationModel, rename: Callable[[str], str]) -> State:
    return {rename(key): value for key, value in model.state_dict().items()}


def _fseft() -> State:
    return _renamed(_swin(29), lambda key: "module." + key.removeprefix("body.").replace("head.", "classifier."))


def _universal(model: FoundationModel, coarsest: int) -> State:
    """Make the state of SuPreM and CLIP-driven: the backbone, and parts of a head that depends on the image."""
    state = _renamed(model, lambda key: "module.backbone." + key.removeprefix("body."))
    channels = model.channels
    beside = {
        "organ_embedding": (25, 512), "text_to_vision.weight": (256, 512),
        "precls_conv.0.weight": (channels,), "precls_conv.2.weight": (8, channels, 1, 1, 1),
        "GAP.0.weight": (coarsest,), "GAP.3.weight": (256, coarsest, 1, 1, 1), "controller.weight": (153, 512, 1, 1, 1),
    }  # fmt: skip
    return state | {f"module.{key}": torch.zeros(shape) for key, shape in beside.items()}


def _suprem_unet() -> State:
    """Make the state of SuPreM's U-Net, with running statistics that the network never uses."""
    state = _universal(_unet(), 512)
    for key in [key for key in state if key.endswith("bn1.weight")]:
        for name in ("running_mean", "running_var"):
            state[key.replace("weight", name)] = torch.full_like(state[key], 7)
        state[key.replace("weight", "num_batches_tracked")] = torch.tensor(5)
    return state


def _btcv() -> State:
    return _renamed(_swin(14), lambda key: key.removeprefix("body.").replace("head.", "out.conv.conv."))


def _selfsup() -> State:
    state = _renamed(_swin(), lambda key: key.replace("body.swinViT.", "module.").replace("mlp.linear", "mlp.fc"))
    encoder = {key: value for key, value in state.items() if key.startswith("module.")}
    return encoder | {"module.rotation_head.weight": torch.zeros(4, 96), "module.norm.weight": torch.zeros(96)}


STATES: dict[str, Callable[[], State]] = {
    "fseft": _fseft,
    "suprem_swinunetr": lambda: _universal(_swin(), 192),
    "suprem_unet": _suprem_unet,
    "clipdriven": lambda: _universal(_swin(), 192),
    "btcv": _btcv,
    "selfsup": _selfsup,
}


def _same(results: FoundationModel, expected: FoundationModel, prefix: str) -> bool:
    expected_state = {key: value for key, value in expected.state_dict().items() if key.startswith(prefix)}
    return bool(expected_state) and all(
        torch.equal(results.state_dict()[key], value) for key, value in expected_state.items()
    )


def test_every_published_name_is_tested() -> None:
    assert tuple(STATES) == PUBLISHED


@pytest.mark.parametrize("name", ["fseft", "suprem_swinunetr", "clipdriven", "btcv", "selfsup"])
def test_swin_unetr_is_read(name: str) -> None:
    result = build_from_state(name, STATES[name]())
    assert _same(result, _swin(), "body.swinViT." if name == "selfsup" else "body.")
    assert not result.training


def test_unet_is_read() -> None:
    assert _same(build_from_state("suprem_unet", _suprem_unet()), _unet(), "body.")


def test_head_of_29_classes_is_read() -> None:
    result = build_from_state("fseft", _fseft())
    assert result.classes == FSEFT_CLASSES
    assert len(set(FSEFT_CLASSES)) == 29
    assert [result.index(organ) for organ in ("spleen", "liver", "pancreas", "duodenum", "colon_tumor")] == [
        0,
        5,
        10,
        13,
        28,
    ]
    assert _same(result, _swin(29), "head.")


def test_softmax_is_converted_to_odds_against_the_background(images: torch.Tensor) -> None:
    result = build_from_state("btcv", _btcv())
    assert len(result.classes) == 13
    assert result.classes[5] == "liver"
    with torch.no_grad():
        logits = _swin(14)(images)
        expected = logits[:, [0, 6]].softmax(1)[:, 1]
        torch.testing.assert_close(result(images)[:, 5].sigmoid(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["suprem_swinunetr", "suprem_unet", "clipdriven", "selfsup"])
def test_model_without_a_linear_head_knows_no_organ(name: str) -> None:
    result = build_from_state(name, STATES[name]())
    assert result.classes == ()
    assert (
        build_adapter("linear_probe", result, "liver").trainable_parameters()["head.weight"].shape[1] == result.channels
    )


def test_missing_weights_are_fixed_by_the_seed() -> None:
    first, again, different = (build_from_state("selfsup", _selfsup(), seed) for seed in (0, 0, 1))
    assert _same(first, again, "body.")
    assert not _same(first, different, "body.decoder1")


@pytest.mark.parametrize(
    ("name", "actual_model", "message"),
    [
        ("fseft", "suprem_unet", "It holds a U-Net, and fseft is a Swin UNETR. It could be suprem_unet"),
        ("suprem_unet", "fseft", "It holds a Swin UNETR, and suprem_unet is a U-Net. It could be fseft"),
        ("fseft", "btcv", "of fseft are missing or have another shape.*head.weight. It could be btcv"),
        ("btcv", "fseft", "of btcv are missing or have another shape.*It could be fseft"),
        ("fseft", "clipdriven", "head.weight. It could be suprem_swinunetr or clipdriven"),
        ("clipdriven", "selfsup", "It could be selfsup"),
        ("selfsup", "btcv", "It holds a decoder too, and selfsup is an encoder alone. It could be btcv"),
    ],
)
def test_error_names_the_matching_checkpoint(name: str, actual_model: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_from_state(name, STATES[actual_model]())


def test_another_network_is_refused() -> None:
    state = {"image_encoder.patch_embed.proj.weight": torch.zeros(4, 3, 2, 2)}
    with pytest.raises(InputError, match="It holds another network.*Give a checkpoint of one of fseft"):
        build_from_state("fseft", state)


def test_error_names_a_missing_tensor() -> None:
    state = _btcv()
    del state["decoder3.transp_conv.conv.weight"]
    with pytest.raises(InputError, match=r"1 of the \d+ tensors of btcv are missing.*decoder3.transp_conv.conv.weight"):
        build_from_state("btcv", state)


def test_invalid_width_is_refused() -> None:
    with pytest.raises(InputError, match="multiple of 12"):
        build_from_state("btcv", {"swinViT.patch_embed.proj.weight": torch.zeros(16, 1, 2, 2, 2)})


def test_models_are_loaded_from_files(tmp_path: Path) -> None:
    torch.save({"net": _suprem_unet(), "optimizer": {"state": {}}, "epoch": 2100}, tmp_path / "suprem_unet.pth")
    model, digest = load_foundation_model("suprem_unet", tmp_path / "suprem_unet.pth")
    assert _same(model, _unet(), "body.")
    assert len(digest) == 64
    save_file(_fseft(), tmp_path / "fseft.safetensors")
    assert load_foundation_model("fseft", tmp_path / "fseft.safetensors")[0].classes == FSEFT_CLASSES
    with pytest.raises(InputError, match=r"fseft.safetensors: It holds a Swin UNETR, and suprem_unet"):
        load_foundation_model("suprem_unet", tmp_path / "fseft.safetensors")


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no foundation model named 'gpt'.*suprem_unet"):
        load_foundation_model("gpt", tmp_path / "a.pth")
    with pytest.raises(InputError, match="does not exist"):
        load_foundation_model("fseft", tmp_path / "a.pth")
