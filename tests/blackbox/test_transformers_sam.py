from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from baps.blackbox import load_black_box
from baps.blackbox.weights import sha256
from baps.errors import InputError
from baps.prompts import Prompt

transformers = pytest.importorskip("transformers", reason="the extra 'encoders' is not installed")

from baps.blackbox.transformers_sam import TransformersBlackBox, read_transformers_model  # noqa: E402

NAMES = ["sam_hq", "sam3"]
PROMPTS = [
    Prompt(((60.0, 50.0),)),
    Prompt(((60.0, 50.0), (30.0, 55.5)), ((20.0, 30.0),)),
    Prompt(box=(10.0, 12.0, 61.0, 57.0)),
    Prompt(((40.0, 50.0),), ((20.0, 30.0),), (10.0, 12.0, 61.0, 57.0)),
]
_DECODER = {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32}
_SPREAD = 8
"""Factor of random weights, so that masks depend on what the network is shown."""


def _model(name: str) -> Any:
    """Build a small model with random weights; its input is 128 or 112 pixels wide."""
    encoder: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "window_size": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "sam_hq":
            encoder |= {"image_size": 128, "patch_size": 16, "output_channels": 32, "global_attn_indexes": [0, 1]}
            config = transformers.SamHQConfig(
                vision_config={**encoder, "mlp_dim": 64, "num_pos_feats": 16, "initializer_range": 0.02},
                prompt_encoder_config={"hidden_size": 32, "image_size": 128, "patch_size": 16},
                mask_decoder_config={**_DECODER, "vit_dim": 32},
            )
            model = transformers.SamHQModel(config)
        else:
            encoder |= {"image_size": 112, "patch_size": 14, "intermediate_size": 64, "pretrain_image_size": 56}
            vision = {
                "model_type": "sam3_vision_model",
                "backbone_config": {"model_type": "sam3_vit_model", **encoder, "global_attn_indexes": [1]},
                "fpn_hidden_size": 32,
                "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
            }
            config = transformers.Sam3TrackerConfig(
                vision_config=vision,
                prompt_encoder_config={"hidden_size": 32, "image_size": 112, "patch_size": 14},
                mask_decoder_config=_DECODER,
            )
            model = transformers.Sam3TrackerModel(config)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                    module.weight.mul_(_SPREAD)
    return model.eval()


@torch.no_grad()
def _reference(name: str, model: Any, image: NDArray[np.uint8], prompt: Prompt) -> NDArray[np.float32]:
    """Segment an image with the package's own processor, as its documentation shows."""
    side = model.config.prompt_encoder_config.image_size
    if name == "sam_hq":
        pads = {"height": side, "width": side}
        prepare = transformers.SamImageProcessor(size={"longest_edge": side}, pad_size=pads)
        processor = transformers.SamHQProcessor(prepare)
    else:
        prepare = transformers.Sam3ImageProcessor(size={"height": side, "width": side})
        processor = transformers.Sam3TrackerProcessor(prepare)
    clicks = [list(point) for point in (*prompt.positive, *prompt.negative)]
    signs = [1] * len(prompt.positive) + [0] * len(prompt.negative)
    given: dict[str, Any] = {"input_points": [[clicks]], "input_labels": [[signs]]} if clicks else {}
    if prompt.box:
        given["input_boxes"] = [[list(prompt.box)]]
    inputs = processor(images=image, return_tensors="pt", **given)
    sizes = {key: inputs.pop(key) for key in ("original_sizes", "reshaped_input_sizes") if key in inputs}
    inputs = {key: value.float() if value.is_floating_point() else value for key, value in inputs.items()}
    logits = model(**inputs, multimask_output=False).pred_masks
    (enlarged,) = processor.post_process_masks(logits, *sizes.values(), binarize=False)
    return enlarged.flatten(0, -3)[0].sigmoid().numpy()


@pytest.mark.parametrize("shape", [(128, 128), (112, 112), (90, 128), (128, 75), (200, 200), (301, 170)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_masks_equal_the_packages_processor(name: str, shape: tuple[int, int]) -> None:
    model = _model(name)
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    black_box = TransformersBlackBox(model, name, batch_size=3)
    answers = black_box.segment(np.stack([image] * len(PROMPTS)), PROMPTS)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        np.testing.assert_allclose(answer, _reference(name, model, image, prompt), atol=1e-4)
        np.testing.assert_allclose(black_box.decode(black_box.encode(image), prompt), answer, atol=1e-4)
    assert all(np.abs(one - other).max() > 1e-2 for one, other in itertools.pairwise(answers))
    dimmer = black_box.segment(image[None] // 2, PROMPTS[:1])[0]
    assert np.abs(dimmer - answers[0]).max() > 1e-2  # The network is sensitive to what it is shown.


@pytest.mark.parametrize("name", NAMES)
def test_saved_files_are_loaded(tmp_path: Path, name: str) -> None:
    model = _model(name)
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    black_box = load_black_box(name, weights, sha256(weights), "cpu")
    capabilities = black_box.capabilities
    assert (capabilities.name, capabilities.preprocessing, capabilities.weights_sha256) == (name, name, sha256(weights))
    image = np.random.default_rng(0).integers(0, 256, (1, 90, 128, 3), np.uint8)
    expected = TransformersBlackBox(model, name).segment(image, PROMPTS[:1])
    np.testing.assert_allclose(black_box.segment(image, PROMPTS[:1]), expected, atol=1e-6)
    with pytest.raises(InputError, match="was expected"):
        load_black_box(name, weights, "0" * 64, "cpu")


def test_the_published_files_of_sam_3_hold_other_parts_too(tmp_path: Path) -> None:
    """Its parts have other names there; those that answer clicks are found."""
    model = _model("sam3")
    renamed = {}
    for key, value in model.state_dict().items():
        whole = key.replace("vision_encoder.backbone.", "detector_model.vision_encoder.backbone.")
        whole = whole.replace("vision_encoder.neck.", "tracker_neck.") if whole == key else whole
        renamed[whole if whole != key else f"tracker_model.{key}"] = value.contiguous()
    renamed["detector_model.text_projection.weight"] = torch.zeros(2)
    save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    config = {"model_type": "sam3_video", "tracker_config": model.config.to_dict()}
    (tmp_path / "config.json").write_text(json.dumps(config, default=str))
    found = read_transformers_model("sam3", tmp_path / "model.safetensors").state_dict()
    assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_files_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    other = tmp_path / "a.pth"
    other.touch()
    with pytest.raises(InputError, match="give the path of model.safetensors, with config.json beside it"):
        load_black_box(name, other, device="cpu")
    _model(name).save_pretrained(tmp_path)
    written = config.read_text()
    for text, reason in (
        ("{", "is not a configuration of transformers"),
        ("[]", "is not a configuration of transformers"),
        (json.dumps({**json.loads(written), "model_type": "clip"}), f"describes the model clip, not {name}"),
    ):
        config.write_text(text)
        with pytest.raises(InputError, match=reason):
            load_black_box(name, weights, device="cpu")
    config.write_text(written)
    state = load_file(weights)
    gone = next(key for key in state if "mask_decoder." in key)
    save_file({key: value for key, value in state.items() if key != gone}, weights, {"format": "pt"})
    with pytest.raises(InputError, match="1 tensors are missing, such as mask_decoder"):
        load_black_box(name, weights, device="cpu")
    weights.write_bytes(b"rubbish" * 100)
    with pytest.raises(InputError, match=f"cannot be loaded as {name}"):
        load_black_box(name, weights, device="cpu")
