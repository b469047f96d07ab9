"""Files as their authors' training code writes them, with random weights, because the real ones were not available.

Answers are compared with ``tests.support.published_checkpoints``; Swin UNETRs with a linear head are small.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from safetensors.torch import save_file

from baps.errors import InputError
from baps.fseft.adapters import METHODS, build_adapter, unsupported_reason
from baps.fseft.feature_cache import FeatureCache
from baps.fseft.inference import segment
from baps.fseft.landmarks import add_landmarks
from baps.fseft.models import (
    FSEFT_CLASSES,
    PUBLISHED,
    FoundationModel,
    OrganModel,
    build_from_state,
    build_swin_unetr,
    load_foundation_model,
    load_organ_model,
)
from baps.imaging.volume import Volume
from tests.support.published_checkpoints import (
    State,
    UniversalModel,
    btcv_model,
    new_universal,
    parallel_state,
    save_btcv,
    save_selfsup,
    save_universal,
)

ATLAS = (
    "aorta", "gall_bladder", "kidney_left", "kidney_right", "liver", "pancreas", "postcava", "spleen", "stomach",
    "adrenal_gland_left", "adrenal_gland_right", "bladder", "celiac_trunk", "colon", "duodenum", "esophagus",
    "femur_left", "femur_right", "hepatic_vessel", "intestine", "lung_left", "lung_right",
    "portal_vein_and_splenic_vein", "prostate", "rectum",
)  # fmt: skip
"""AbdomenAtlas 1.1's class map; the first nine are that of 1.0."""

UNIVERSAL = (
    "Spleen", "Right Kidney", "Left Kidney", "Gall Bladder", "Esophagus", "Liver", "Stomach", "Aorta", "Postcava",
    "Portal Vein and Splenic Vein", "Pancreas", "Right Adrenal Gland", "Left Adrenal Gland", "Duodenum",
    "Hepatic Vessel", "Right Lung", "Left Lung", "Colon", "Intestine", "Rectum", "Bladder", "Prostate",
    "Left Head of Femur", "Right Head of Femur", "Celiac Trunk", "Kidney Tumor", "Liver Tumor", "Pancreas Tumor",
    "Hepatic Vessel Tumor", "Lung Tumor", "Colon Tumor", "Kidney Cyst",
)  # fmt: skip
"""The template of the Universal Model."""

TEXT_DRIVEN = {
    "suprem_unet, 25": ("suprem_unet", True, ATLAS),
    "suprem_unet, 9": ("suprem_unet", True, ATLAS[:9]),
    "suprem_unet, 32": ("suprem_unet", True, UNIVERSAL),
    "suprem_swinunetr, 25": ("suprem_swinunetr", False, ATLAS),
    "clipdriven, 32": ("clipdriven", False, UNIVERSAL),
}


def _swin(outputs: int = 0) -> FoundationModel:
    with torch.random.fork_rng():
        torch.manual_seed(42)
        return build_swin_unetr([str(n) for n in range(outputs)], 12, published=True)


@cache
def _universal(unet: bool, classes: int) -> UniversalModel:
    return new_universal(unet, classes)


def _renamed(model: FoundationModel, rename: Callable[[str], str]) -> State:
    return {rename(key): value for key, value in model.state_dict().items()}


def _fseft() -> State:
    return _renamed(_swin(29), lambda key: "module." + key.removeprefix("body.").replace("head.", "classifier."))


def _btcv() -> State:
    return _renamed(_swin(14), lambda key: key.removeprefix("body.").replace("head.", "out.conv.conv."))


def _selfsup() -> State:
    state = _renamed(_swin(), lambda key: key.replace("body.swinViT.", "module.").replace("mlp.linear", "mlp.fc"))
    encoder = {key: value for key, value in state.items() if key.startswith("module.")}
    return encoder | {"module.rotation_head.weight": torch.zeros(4, 96), "module.norm.weight": torch.zeros(96)}


STATES: dict[str, Callable[[], State]] = {
    "fseft": _fseft,
    "suprem_swinunetr": lambda: parallel_state(_universal(False, 25)),
    "suprem_unet": lambda: parallel_state(_universal(True, 25)),
    "clipdriven": lambda: parallel_state(_universal(False, 32)),
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


@pytest.mark.parametrize("name", ["fseft", "btcv", "selfsup"])
def test_swin_unetr_is_read(name: str) -> None:
    result = build_from_state(name, STATES[name]())
    assert _same(result, _swin(), "body.swinViT." if name == "selfsup" else "body.")
    assert not result.training


@pytest.mark.parametrize("case", TEXT_DRIVEN)
def test_text_driven_head_answers_as_published(case: str, tmp_path: Path) -> None:
    name, unet, organs = TEXT_DRIVEN[case]
    theirs = _universal(unet, len(organs))
    save_universal(tmp_path / "a.pth", theirs)
    ours, _ = load_foundation_model(name, tmp_path / "a.pth")
    sides = (2, 1, 16, 24, 16) if unet else (1, 1, 64, 64, 64)
    images = torch.rand(sides, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, results = theirs(images), ours(images)
    assert expected.std(dim=(2, 3, 4)).min() > 1e-3  # Each class has an answer of its own.
    torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-4)
    assert not ours.training


@pytest.mark.parametrize("case", TEXT_DRIVEN)
def test_classes_have_their_authors_names_in_order(case: str) -> None:
    name, unet, organs = TEXT_DRIVEN[case]
    model = build_from_state(name, parallel_state(_universal(unet, len(organs))))
    assert [model.index(organ) for organ in organs] == list(range(len(organs)))
    assert len(set(model.classes)) == len(organs)


@pytest.mark.parametrize("organ", ["liver", "appendix"])
def test_methods_begin_at_the_published_answer(organ: str) -> None:
    theirs = _universal(True, 25)
    model = build_from_state("suprem_unet", parallel_state(theirs))
    images = torch.rand((1, 1, 16, 24, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, features = theirs(images)[:, 4:5], model.features(images)
        inputs = {
            "images": images,
            "features": features,
            "probabilities": theirs(images).sigmoid(),
            "landmarks": add_landmarks(model, images[0], features[0], 1.5)[None].float(),
        }
        for method in METHODS:
            if unsupported_reason(method, model) or method == "scratch":
                continue
            result = build_adapter(method, model, organ).eval()
            logits = result(inputs[result.input_kind])
            close = torch.allclose(logits, expected, rtol=1e-2, atol=2e-2)
            assert close == (organ == "liver"), method


def test_zero_shot_answer_of_a_volume_is_that_of_their_inference() -> None:
    """Logits are blended over windows, as in the authors' own sliding windows."""
    theirs = _universal(True, 25)
    network = build_from_state("suprem_unet", parallel_state(theirs))
    model = OrganModel("suprem_unet", network, "a" * 64, side=16)
    image = torch.rand((1, 24, 20, 28), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = sliding_window_inference(image[None], 16, 1, theirs, overlap=0.25, mode="gaussian")[0]
    for index, organ in ((0, "aorta"), (5, "pancreas"), (24, "rectum")):
        result = segment(
            build_adapter("linear_probe", network, organ), FeatureCache(None).get(model, "features", image), 16
        )
        torch.testing.assert_close(result, logits[index : index + 1].sigmoid(), rtol=0, atol=2e-3)


def test_landmarks_are_where_the_text_driven_head_finds_organs() -> None:
    theirs = _universal(True, 25)
    network = build_from_state("suprem_unet", parallel_state(theirs))
    image = torch.rand((1, 16, 24, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = theirs(image[None])[0] > 0
        landmarks = add_landmarks(network, image, network.features(image[None])[0], (1.5, 1.5, 2.0)).float()
    offsets = landmarks[-75:].unflatten(0, (25, 3))
    assert any(organ.sum() >= 50 for organ in found)
    for organ, offset in zip(found, offsets, strict=True):
        if organ.sum() < 50:
            assert not offset.any()
        else:
            expected = -organ.nonzero().float().mean(0) * torch.tensor([1.5, 1.5, 2.0]) / 100
            torch.testing.assert_close(offset[:, 0, 0, 0], expected, rtol=1e-2, atol=1e-3)


def test_encoder_and_decoder_are_those_of_the_backbone() -> None:
    model = build_from_state("clipdriven", STATES["clipdriven"]())
    plain = build_swin_unetr([])
    for parts, expected in ((model.encoder(), plain.encoder()), (model.decoder(), plain.decoder())):
        shapes = [[value.shape for part in side for value in part.parameters()] for side in (parts, expected)]
        assert shapes[0] == shapes[1]


def test_files_whose_names_lack_the_backbone_are_read() -> None:
    """CLIP-driven's test code reads them."""
    state = {key.replace("backbone.", ""): value for key, value in parallel_state(_universal(False, 32)).items()}
    first, again = build_from_state("clipdriven", state), build_from_state("clipdriven", STATES["clipdriven"]())
    assert _same(first, again, "")
    assert len(first.classes) == 32


def test_backbone_alone_is_read_and_knows_no_organ(tmp_path: Path) -> None:
    """SuPreM's training code writes such a file beside the whole one."""
    theirs = _universal(True, 25)
    save_universal(tmp_path / "unet_backbone.pth", theirs, theirs.backbone.state_dict())
    model, _ = load_foundation_model("suprem_unet", tmp_path / "unet_backbone.pth")
    images = torch.rand((1, 1, 16, 16, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.features(images), theirs.backbone(images)[1], rtol=1e-4, atol=1e-4)
    assert model.classes == ()


def test_btcv_is_read_with_what_its_training_keeps(tmp_path: Path) -> None:
    theirs = btcv_model()
    save_btcv(tmp_path / "btcv.pt", theirs)
    written = torch.load(tmp_path / "btcv.pt", weights_only=False)
    assert written.keys() == {"epoch", "best_acc", "state_dict", "optimizer", "scheduler"}
    assert isinstance(written["best_acc"], np.generic)
    model, _ = load_foundation_model("btcv", tmp_path / "btcv.pt")
    images = torch.rand((1, 1, 64, 64, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = theirs(images)
        torch.testing.assert_close(model(images), logits[:, 1:] - logits[:, :1], rtol=1e-3, atol=1e-3)


def test_another_object_beside_the_scalar_is_refused(tmp_path: Path) -> None:
    save_btcv(tmp_path / "btcv.pt", btcv_model(), args=argparse.Namespace(space_z=2.0))
    with pytest.raises(InputError, match=r"btcv.pt cannot be read.*tensors and numbers and nothing else"):
        load_foundation_model("btcv", tmp_path / "btcv.pt")


def test_volumes_are_prepared_as_each_model_was_trained(tmp_path: Path) -> None:
    save_btcv(tmp_path / "btcv.pt", btcv_model())
    save_universal(tmp_path / "suprem.pth", _universal(True, 25))
    voxels = np.linspace(-1000, 1000, 40 * 30 * 20).reshape(40, 30, 20).astype(np.int16)
    volume = Volume(voxels, np.diag([-3.0, -3.0, 4.0, 1.0]))  # Towards left, back and head.
    for name, file, size in (("btcv", "btcv.pt", (1.5, 1.5, 2.0)), ("suprem_unet", "suprem.pth", (1.5, 1.5, 1.5))):
        prepared = load_organ_model(name, tmp_path / file, device="cpu").prepare(volume)
        np.testing.assert_allclose(np.diag(prepared.affine), (*size, 1), rtol=0.03)
        assert nibabel.aff2axcodes(prepared.affine) == ("R", "A", "S")
        assert min(prepared.image.shape[1:]) >= 96
        assert (float(prepared.image.min()), float(prepared.image.max())) == (0, 1)


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


def test_encoder_alone_knows_no_organ(tmp_path: Path) -> None:
    save_selfsup(tmp_path / "model_swinvit.pt", _selfsup())
    result, _ = load_foundation_model("selfsup", tmp_path / "model_swinvit.pt")
    assert result.classes == ()
    head = build_adapter("linear_probe", result, "liver").trainable_parameters()["head.weight"]
    assert head.shape[1] == result.channels


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
        ("fseft", "suprem_swinunetr", "head.weight. It could be suprem_swinunetr"),
        (
            "clipdriven",
            "suprem_swinunetr",
            "Its head has 25 classes, and clipdriven has names for 32, so its organs would get wrong names. It could "
            "be suprem_swinunetr",
        ),
        ("clipdriven", "selfsup", "It could be selfsup"),
        ("selfsup", "btcv", "It holds a decoder too, and selfsup is an encoder alone. It could be btcv"),
    ],
)
def test_error_names_the_matching_checkpoint(name: str, actual_model: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_from_state(name, STATES[actual_model]())


@pytest.mark.parametrize("number", [0, 24, 26, 31])
def test_other_number_of_classes_is_refused_with_a_remedy(number: int) -> None:
    state = parallel_state(_universal(True, 25))
    state["module.organ_embedding"] = torch.zeros(number, 512)
    with pytest.raises(
        InputError, match=f"head has {number} classes, and suprem_unet has names for 9 or 25 or 32"
    ) as error:
        build_from_state("suprem_unet", state)
    assert "save the tensors below backbone alone and train the organs" in str(error.value)


def test_other_number_of_outputs_is_refused_with_a_remedy() -> None:
    state = _btcv()
    for key in ("out.conv.conv.weight", "out.conv.conv.bias"):
        state[key] = state[key][:9]
    with pytest.raises(InputError, match="head has 9 outputs, and btcv has names for 13 classes.*Give the published"):
        build_from_state("btcv", state)


def test_head_without_embeddings_of_names_is_refused() -> None:
    """The authors' code can train one on random embeddings, which have no order."""
    state = parallel_state(_universal(True, 25))
    state["module.organ_embedding.weight"] = state.pop("module.organ_embedding")[:, :256]
    with pytest.raises(InputError, match="has no embeddings of its classes' names"):
        build_from_state("suprem_unet", state)


@pytest.mark.parametrize("part", ["text_to_vision.weight", "GAP.3.bias", "controller.weight", "precls_conv.0.weight"])
def test_incomplete_text_driven_head_is_refused(part: str) -> None:
    state = parallel_state(_universal(True, 25))
    del state[f"module.{part}"]
    with pytest.raises(InputError, match=f"1 of the .* being body.{part}. Fetch the published checkpoint again"):
        build_from_state("suprem_unet", state)


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
    with pytest.raises(InputError, match="multiple of 12 up to 96"):
        build_from_state("btcv", {"swinViT.patch_embed.proj.weight": torch.zeros(12000, 1, 2, 2, 2)})


def test_files_are_hashed_and_named_in_errors(tmp_path: Path) -> None:
    save_file(_fseft(), tmp_path / "fseft.safetensors")
    model, digest = load_foundation_model("fseft", tmp_path / "fseft.safetensors")
    assert model.classes == FSEFT_CLASSES
    assert len(digest) == 64
    with pytest.raises(InputError, match=r"fseft.safetensors: It holds a Swin UNETR, and suprem_unet"):
        load_foundation_model("suprem_unet", tmp_path / "fseft.safetensors")


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no foundation model named 'gpt'.*suprem_unet"):
        load_foundation_model("gpt", tmp_path / "a.pth")
    with pytest.raises(InputError, match="does not exist"):
        load_foundation_model("fseft", tmp_path / "a.pth")
