from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from baps.blackbox import BLACK_BOXES, BlackBox, RemoteSettings, load_black_box
from baps.blackbox.choices import CHECKPOINT_BLACK_BOXES
from baps.blackbox.loading import BUNDLED_WEIGHTS
from baps.blackbox.replica_process import ReplicaProcess
from baps.blackbox.replicas import ReplicatedBlackBox
from baps.errors import BapsError, InputError


def test_bundled_black_box_is_loaded(bundled: BlackBox) -> None:
    capabilities = bundled.capabilities
    assert capabilities.name == "bundled"
    assert capabilities.weights_sha256 == hashlib.sha256(BUNDLED_WEIGHTS.read_bytes()).hexdigest()
    assert capabilities.input_size == json.loads(BUNDLED_WEIGHTS.with_suffix(".json").read_text())["input_side"]
    assert bundled.images_queried == 0 or bundled.budget is None


def test_error_for_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="'medsam2'") as caught:
        load_black_box("medsam2", device="cpu")
    assert all(name in str(caught.value) for name in BLACK_BOXES)


@pytest.mark.parametrize("name", CHECKPOINT_BLACK_BOXES)
def test_checkpoint_is_required(name: str) -> None:
    with pytest.raises(InputError, match=f"The black box {name} needs weights"):
        load_black_box(name, device="cpu")


def test_remote_model_requires_an_address_and_no_weights() -> None:
    with pytest.raises(InputError, match="needs an address"):
        load_black_box("remote")
    with pytest.raises(InputError, match="has its weights on its server"):
        load_black_box("remote", weights=BUNDLED_WEIGHTS, remote=RemoteSettings("http://127.0.0.1:9/m"))


@pytest.mark.parametrize("name", ["bundled", *CHECKPOINT_BLACK_BOXES])
def test_missing_weights_are_an_error(tmp_path: Path, name: str) -> None:
    if name in ("sam_hq", "sam3"):
        pytest.importorskip("transformers", reason="the extra 'encoders' is not installed")
    with pytest.raises(InputError, match="does not exist"):
        load_black_box(name, weights=tmp_path / "absent.safetensors", device="cpu")


@pytest.mark.parametrize("name", ["bundled", *CHECKPOINT_BLACK_BOXES])
def test_wrong_hash_is_refused(name: str) -> None:
    if name in ("sam_hq", "sam3"):
        pytest.importorskip("transformers", reason="the extra 'encoders' is not installed")
    with pytest.raises(InputError, match="was expected"):
        load_black_box(name, weights=BUNDLED_WEIGHTS, sha256="0" * 64, device="cpu")


@pytest.mark.parametrize(("name", "model"), [("sam", "SAM"), ("medsam", "SAM"), ("sam2", "SAM 2")])
def test_weights_of_another_model_are_refused(name: str, model: str) -> None:
    with pytest.raises(InputError, match=f"is not a {model} checkpoint"):
        load_black_box(name, weights=BUNDLED_WEIGHTS, device="cpu")


def test_sam_without_all_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"image_encoder.patch_embed.proj.weight": torch.zeros(768, 3, 16, 16)}, path)
    with pytest.raises(InputError, match="looks like SAM vit_b, but its tensors do not fit"):
        load_black_box("sam", weights=path, device="cpu")


@pytest.mark.parametrize(
    ("tensor", "relative"),
    [
        ("mask_decoder.hf_token.weight", "SAM-HQ, in the format of its authors.* with black_box=sam_hq"),
        ("image_encoder.patch_embed.seq.0.c.weight", "MobileSAM, which no maintained package loads. Use SAM, MedSAM"),
        ("mask_decoder.final_output_upscaling_layers.0.0.weight", "EfficientSAM, which no maintained package loads"),
        ("detector.backbone.vision_backbone.trunk.pos_embed", "SAM 3, in the format of its authors.*black_box=sam3"),
    ],
)
@pytest.mark.parametrize("name", ["sam", "medsam", "sam2"])
def test_relatives_of_sam_are_refused_by_name(tmp_path: Path, name: str, tensor: str, relative: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"image_encoder.patch_embed.proj.weight": torch.zeros(768, 3, 16, 16), tensor: torch.zeros(1)}, path)
    with pytest.raises(InputError, match=f"is a checkpoint of {relative}"):
        load_black_box(name, weights=path, device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="This machine has a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_missing_gpu_is_an_error(device: str) -> None:
    with pytest.raises(InputError, match=f"{device} was requested, but there is no usable GPU"):
        load_black_box("bundled", device=device)


def test_unknown_device_is_an_error() -> None:
    with pytest.raises(InputError, match="gpu0"):
        load_black_box("bundled", device="gpu0")


def test_bundled_weights_without_their_record_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(InputError):
        load_black_box("bundled", weights=path, device="cpu")


def test_incompatible_bundled_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    path.with_suffix(".json").write_text('{"input_side": 64}')
    with pytest.raises(InputError):
        load_black_box("bundled", weights=path, device="cpu")


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("sam2", "sam2", "sam2"),
        ("sam_hq", "transformers", "encoders"),
        ("sam3", "transformers", "encoders"),
        ("remote", "tritonclient", "remote"),
    ],
)
def test_error_names_the_missing_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str, extra: str
) -> None:
    weights = tmp_path / "sam2.safetensors"
    save_file({"a": torch.zeros(1)}, weights)
    for module in [
        module
        for module in sys.modules
        if module.startswith((f"{package}.", "baps.blackbox.sam2", "baps.blackbox.transformers_sam"))
    ]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BapsError, match=rf"The black box {name} needs .*pip install 'baps-monailabel\[{extra}\]'"):
        load_black_box(name, None if name == "remote" else weights, remote=RemoteSettings("http://127.0.0.1:9/model"))


def test_several_devices_are_several_replicas() -> None:
    """They are not started yet; each loads the weights that this process has."""
    black_box = load_black_box("bundled", device="cpu, cpu,cpu")
    assert isinstance(black_box, ReplicatedBlackBox)
    assert black_box.capabilities == load_black_box("bundled", device="cpu").capabilities
    replicas = [replica for replica in black_box._replicas if isinstance(replica, ReplicaProcess)]
    assert [replica.name for replica in replicas] == ["1 on cpu", "2 on cpu", "3 on cpu"]
    assert {replica._arguments[2] for replica in replicas} == {black_box.capabilities.weights_sha256}


@pytest.mark.parametrize(
    ("devices", "message"),
    [("cpu,gpu0", "no device 'gpu0'"), ("cpu,", "no device ''"), ("cpu," * 70 + "cpu", "up to 64")],
)
def test_invalid_lists_of_devices_are_refused(devices: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_black_box("bundled", device=devices)
