"""Small networks with random weights in TotalSegmentator's folder: nnU-Net wrote them and gave the expected answers."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from baps.errors import InputError, MissingExtraError
from baps.fseft.adaptation import OrganSettings, adapt_organ
from baps.fseft.adapters import METHODS, build_adapter, unsupported_reason
from baps.fseft.feature_cache import FeatureCache
from baps.fseft.inference import compute_inputs
from baps.fseft.landmarks import add_landmarks
from baps.fseft.models import OrganModel, load_organ_model
from baps.fseft.models.nnunet import read_nnunet_plan
from baps.fseft.models.totalsegmentator import LICENCE, read_totalsegmentator_folder
from baps.fseft.predictor import segment_volume, unadapted
from baps.fseft.volumes import LabelledVolume
from tests.support.nnunet_writer import structures_of
from tests.support.totalsegmentator import (
    DATASETS,
    nnunet_log_odds,
    read_written_volume,
    seen_once,
    write_totalsegmentator,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("totalsegmentator")]

FAST = "Dataset297_TotalSegmentator_total_3mm_1559subj"
TRAINER = "nnUNetTrainer_4000epochs_NoMirroring__nnUNetPlans__3d_fullres"
CHECKPOINT = "fold_0/checkpoint_final.pth"

Change = Callable[[Any], None]


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("totalsegmentator")
    write_totalsegmentator(folder)
    return folder


@pytest.fixture(scope="session")
def models(written: Path) -> dict[str, OrganModel]:
    return {name: load_organ_model(name, written / "results", device="cpu") for name in DATASETS}


@pytest.fixture
def own(written: Path, tmp_path: Path) -> Path:
    """A copy of the fast network, to be damaged."""
    shutil.copytree(written / "results" / FAST, tmp_path / "results" / FAST)
    return tmp_path / "results"


def _edit(file: Path, change: Change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def _edit_plans(folder: Path, change: Change) -> None:
    _edit(folder / FAST / TRAINER / "plans.json", change)


@pytest.mark.parametrize("name", DATASETS)
def test_answer_is_nnunets(name: str, written: Path, models: dict[str, OrganModel]) -> None:
    """Also where the volume is smaller than the window and has other axes; the parts' networks have others again."""
    model, expected = models[name], nnunet_log_odds(written, name, "one window")
    image = model.prepare(read_written_volume(written, name, "one window")).image
    with torch.no_grad():
        result = model.network(image[None])[0]
    assert result.shape == expected.shape == (117, *model.side)  # type: ignore[misc]
    assert expected.std() > 1 and (expected > 0).sum() > 1000
    np.testing.assert_allclose(result, expected, atol=1e-3)
    assert model.network.classes == tuple(structure for n in DATASETS[name] for structure in structures_of(n))


@pytest.mark.parametrize("name", DATASETS)
def test_windows_lie_as_nnunets(name: str, written: Path, models: dict[str, OrganModel]) -> None:
    """Where windows overlap, nnU-Net blends logits and we blend log odds; elsewhere its half precision differs."""
    model, expected = models[name], nnunet_log_odds(written, name, "four windows")
    image = model.prepare(read_written_volume(written, name, "four windows")).image
    result = 5 * compute_inputs(model.network, "features", image, model.side).numpy()
    once = seen_once(name, expected.shape[1:])
    assert 0.5 < once.mean() < 0.9
    assert result.shape == expected.shape
    assert np.abs(result - expected)[:, once].mean() < 0.01
    assert np.mean((result > 0)[:, once] != (expected > 0)[:, once]) < 1e-4


@pytest.mark.parametrize("name", DATASETS)
def test_masks_are_in_the_frame_of_the_volume(name: str, written: Path, models: dict[str, OrganModel]) -> None:
    model, expected = models[name], nnunet_log_odds(written, name, "one window") > 0
    volume = read_written_volume(written, name, "one window", axes="LSA")
    found = sorted(range(117), key=lambda k: -expected[k].sum())[:3]
    for index in found:
        adapter = unadapted(model, model.network.classes[index].replace("_", " ").upper())
        assert adapter is not None
        mask = segment_volume(model, adapter, volume)
        grid = nibabel.Nifti1Image(mask.voxels, mask.affine)
        ras = np.asarray(nibabel.as_closest_canonical(grid).dataobj) > 0
        in_axes = ras.transpose(["RAS".index(axis) for axis in model.orientation])
        padding = [(long - short) // 2 for long, short in zip(expected.shape[1:], in_axes.shape, strict=True)]
        inside = tuple(slice(start, start + n) for start, n in zip(padding, in_axes.shape, strict=True))
        assert np.mean(in_axes != expected[index][inside]) < 1e-3
        assert in_axes.sum() > 100


@pytest.mark.parametrize("organ", ["liver", "appendix"])
def test_methods_begin_at_nnunets_answer(organ: str, written: Path, models: dict[str, OrganModel]) -> None:
    model = models["totalsegmentator"]
    image = model.prepare(read_written_volume(written, "totalsegmentator", "one window")).image
    expected = torch.from_numpy(nnunet_log_odds(written, "totalsegmentator", "one window"))
    with torch.no_grad():
        features = model.network.features(image[None])
        inputs = {
            "images": image[None],
            "features": features,
            "probabilities": expected[None].sigmoid().float(),
            "landmarks": add_landmarks(model.network, image, features[0], model.spacing)[None].float(),
        }
        for method in METHODS:
            if unsupported_reason(method, model.network) or method == "scratch":
                continue
            adapter = build_adapter(method, model.network, organ).eval()
            logits = adapter(inputs[adapter.input_kind])[0, 0]
            # The output adapter bounds log odds at those of a millionth.
            close = torch.allclose(logits.clamp(-13, 13), expected[4].float().clamp(-13, 13), atol=0.2)
            assert close == (organ == "liver"), method


def test_new_organ_is_trained_among_117_landmarks(written: Path, models: dict[str, OrganModel], tmp_path: Path) -> None:
    model = models["totalsegmentator"]
    prepared = model.prepare(read_written_volume(written, "totalsegmentator", "one window"))
    mask = np.zeros(prepared.volume.shape, bool)
    mask[12:20, 10:22, 10:22] = True
    cache = FeatureCache(tmp_path)
    landmarks = cache.get(model, "landmarks", prepared.image)
    assert landmarks.shape[0] == 2 * (1 + 117) + 3 * 117
    offsets = landmarks[-351:].unflatten(0, (117, 3)).float()
    expected = nnunet_log_odds(written, "totalsegmentator", "one window") > 0
    assert sum(organ.sum() > 60 for organ in expected) > 3
    for organ, offset in zip(expected, offsets, strict=True):
        if organ.sum() > 60:
            centre = -np.argwhere(organ).mean(0) * 3.0 / 100
            np.testing.assert_allclose(offset[:, 0, 0, 0], centre, atol=2e-3)
    volume = LabelledVolume("patient", prepared.image, prepared.mask(mask), None)
    settings = OrganSettings("landmarks", epochs=2)
    adaptation = adapt_organ(model, "pocket", {"patient": [volume]}, settings, feature_cache=cache)
    assert adaptation.record["black_box"] == {"name": "totalsegmentator", "weights_sha256": model.sha256}
    before, after = (
        adapter.trainable_parameters()["perceptron.0.weight"][:, -351:].detach()
        for adapter in (build_adapter("landmarks", model.network, "pocket"), adaptation.adapter)
    )
    changed = (after != before).any(0).unflatten(0, (117, 3)).all(1)
    found = torch.tensor([organ.sum() > 60 for organ in expected])
    assert changed[found].all()


def test_log_odds_of_certain_voxels_are_finite_and_have_gradients(models: dict[str, OrganModel]) -> None:
    network = models["totalsegmentator"].network
    images = torch.rand(1, 1, 32, 32, 40, generator=torch.Generator().manual_seed(0))
    head = network.body.get_submodule("parts.0.decoder.seg_layers.1")
    weight: torch.Tensor = head.weight  # type: ignore[assignment]
    before = weight.detach().clone()
    try:
        weight.data *= 1e4
        logits = network(images)
        logits.sum().backward()
        assert logits.abs().max() > 1e4
        assert logits.isfinite().all()
        assert weight.grad is not None and weight.grad.isfinite().all()
    finally:
        weight.data.copy_(before)
        network.zero_grad()


def test_checkpoint_holds_what_nnunet_keeps(written: Path) -> None:
    """Plain ``weights_only`` refuses the numpy scalars of its log."""
    file = written / "results" / FAST / TRAINER / CHECKPOINT
    content = torch.load(file, weights_only=False)
    assert content.keys() >= {"network_weights", "optimizer_state", "logging", "init_args", "trainer_name"}
    assert isinstance(content["logging"]["dice_per_class_or_region"][0][0], np.generic)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)


def test_plans_give_the_images(models: dict[str, OrganModel]) -> None:
    fast, full = models["totalsegmentator"], models["totalsegmentator_full"]
    assert (fast.spacing, fast.side, fast.orientation) == ((3.0, 3.0, 3.0), (32, 32, 40), "SAR")
    assert (full.spacing, full.side, full.orientation) == ((1.5, 1.5, 1.5), (40, 32, 32), "RSA")
    assert fast.window == (-1000.0 + 7 * 6, 900.0 - 11 * 6)
    assert full.window == (-1000.0, 900.0)  # The widest of the five; each network clips its own.
    assert fast.notice == LICENCE
    assert len(list(full.network.encoder())) == 5 and len(list(full.network.decoder())) == 5 * 2 * 2
    tuned = {id(parameter) for part in full.network.decoder() for parameter in part.parameters()}
    assert not tuned & {id(parameter) for part in full.network.encoder() for parameter in part.parameters()}


def test_the_hash_is_that_of_all_files(own: Path) -> None:
    first = read_totalsegmentator_folder("totalsegmentator", own).sha256
    assert read_totalsegmentator_folder("totalsegmentator", own / FAST, first.upper()).sha256 == first
    _edit_plans(own, lambda plans: plans.update(image_reader_writer="NibabelIO"))
    assert read_totalsegmentator_folder("totalsegmentator", own).sha256 != first
    with pytest.raises(InputError, match=f"but {first} was expected. Fetch them again"):
        load_organ_model("totalsegmentator", own, first, "cpu")


REMEDY = r"Fetch it with TotalSegmentator's own command, totalseg_download_weights -t total_fast"


@pytest.mark.parametrize("file", ["plans.json", "dataset.json", CHECKPOINT])
def test_missing_part_is_named_with_the_remedy(file: str, own: Path) -> None:
    (own / FAST / TRAINER / file).unlink()
    with pytest.raises(InputError, match=f"A part of .* is missing: .*{file}. {REMEDY}"):
        load_organ_model("totalsegmentator", own, device="cpu")


@pytest.mark.parametrize(
    ("folders", "has"),
    [
        ([], "which has no networks"),
        (["Dataset836_TotalSegmentator_total_3mm_1559subj/a__nnUNetPlans__3d_fullres"], "which has Dataset836_"),
        (["nnUNet/3d_fullres/Task256_TotalSegmentator_3mm_1139subj"], "which has Task256_TotalSegmentator_3mm"),
        ([f"Dataset{n}_a" for n in range(10, 30)], "Dataset15_a and more"),
        ([FAST], f"which has {FAST}"),
    ],
)
def test_folder_of_another_version_is_refused_with_the_remedy(folders: list[str], has: str, tmp_path: Path) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(InputError, match=f"is Dataset297 of TotalSegmentator, version 2.*{has}.*{REMEDY}"):
        load_organ_model("totalsegmentator", tmp_path, device="cpu")


def test_part_of_the_full_model_is_named(written: Path, tmp_path: Path) -> None:
    for folder in (written / "results").glob("Dataset29[1245]*"):
        shutil.copytree(folder, tmp_path / folder.name)
    with pytest.raises(InputError, match="Dataset293 .* it is not in .*Dataset291.*download_weights -t total,"):
        load_organ_model("totalsegmentator_full", tmp_path, device="cpu")


def test_parts_that_see_other_images_are_refused(written: Path, tmp_path: Path) -> None:
    for folder in (written / "results").glob("Dataset29[1-5]*"):
        shutil.copytree(folder, tmp_path / folder.name)
    plans = next(tmp_path.glob("Dataset294*/*/plans.json"))
    _edit(plans, lambda content: content["configurations"]["3d_fullres"].update(spacing=[1.5, 1.5, 3.0]))
    with pytest.raises(InputError, match="see images of different kinds"):
        load_organ_model("totalsegmentator_full", tmp_path, device="cpu")


def test_two_trainings_of_a_network_are_refused(own: Path) -> None:
    shutil.copytree(own / FAST / TRAINER, own / FAST / "nnUNetTrainer__nnUNetPlans__3d_fullres")
    with pytest.raises(InputError, match="has 2 networks Dataset297. Keep the one that you want to use."):
        load_organ_model("totalsegmentator", own, device="cpu")


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pth").touch()
    with pytest.raises(InputError, match=f"a.pth is not a folder.*{REMEDY}"):
        load_organ_model("totalsegmentator", tmp_path / "a.pth", device="cpu")
    with pytest.raises(InputError, match="needs weights"):
        load_organ_model("totalsegmentator", device="cpu")


def _fullres(**values: object) -> Change:
    return lambda plans: plans["configurations"]["3d_fullres"].update(values)


@pytest.mark.parametrize(
    "change",
    [
        lambda plans: plans.pop("configurations"),
        lambda plans: plans.update(image_reader_writer="NaturalImage2DIO"),
        lambda plans: plans.update(transpose_forward=[0, 1, 1]),
        lambda plans: plans.update(transpose_forward=[0, 1, 3]),
        lambda plans: plans["foreground_intensity_properties_per_channel"]["0"].update(std=0),
        lambda plans: plans["foreground_intensity_properties_per_channel"]["0"].update(percentile_99_5=-2000),
        _fullres(normalization_schemes=["ZScoreNormalization"]),
        _fullres(spacing=[3.0, 3.0]),
        _fullres(spacing=[3.0, 3.0, -3.0]),
        _fullres(patch_size=[32, 32, 42]),
        _fullres(patch_size=[32, 32, 40_000]),
        _fullres(UNet_class_name="ResidualEncoderUNet"),
        _fullres(UNet_base_num_features=10**9, unet_max_num_features=10**9),
        _fullres(n_conv_per_stage_encoder=[2, 2, 10**9]),
        _fullres(n_conv_per_stage_encoder=[2] * 10**5),
        _fullres(conv_kernel_sizes=[[999, 3, 3]] * 3),
        _fullres(pool_op_kernel_sizes=[[0, 1, 1]] * 3),
        _fullres(pool_op_kernel_sizes="abc"),
        _fullres(unet_max_num_features=float("inf"), UNet_base_num_features=float("inf")),
    ],
)
def test_plans_of_another_network_are_refused(change: Change, own: Path) -> None:
    _edit_plans(own, change)
    with pytest.raises(InputError, match=r"no plans.json and dataset.json of a 3D U-Net .* Fetch the model again\."):
        load_organ_model("totalsegmentator", own, device="cpu")


@pytest.mark.parametrize("key", ["norm_op", "nonlin_kwargs", "network_class_name"])
def test_other_layers_of_new_plans_are_refused(key: str, written: Path, tmp_path: Path) -> None:
    source = next((written / "results").glob("Dataset291*/*"))
    for name in ("plans.json", "dataset.json"):
        shutil.copy(source / name, tmp_path)
    assert read_nnunet_plan(tmp_path).classes[0] == "spleen"

    def change(plans: Any) -> None:
        architecture = plans["configurations"]["3d_fullres"]["architecture"]
        (architecture if key in architecture else architecture["arch_kwargs"])[key] = "os.system"

    _edit(tmp_path / "plans.json", change)
    with pytest.raises(InputError, match=r"os\.system"):
        read_nnunet_plan(tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"background": 0, "liver": 1, "spleen": 3}, "labels must be 0 for the background, 1, 2 and so on"),
        ({"background": 0, "liver": [1, 2]}, "Fetch the model again"),
        ({"background": 0, "liver": 1}, "has 1 structures, and version 2 has 117. Fetch it"),
        ([], "Fetch the model again"),
    ],
)
def test_other_classes_are_refused(labels: object, message: str, own: Path) -> None:
    _edit(own / FAST / TRAINER / "dataset.json", lambda dataset: dataset.update(labels=labels))
    with pytest.raises(InputError, match=message):
        load_organ_model("totalsegmentator", own, device="cpu")


def test_weights_of_another_plan_are_refused(own: Path) -> None:
    _edit_plans(own, _fullres(UNet_base_num_features=8))
    with pytest.raises(InputError, match=r"not those of the network in its plans\.json\. Fetch both again"):
        load_organ_model("totalsegmentator", own, device="cpu")


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("It ran.",)


@pytest.mark.parametrize("content", [b"junk", {"network_weights": _Runs()}, {"network_weights": {"a": 1}}])
def test_file_that_is_no_checkpoint_is_refused(content: Any, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = own / FAST / TRAINER / CHECKPOINT
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(InputError, match=r"checkpoint_final.pth (cannot be read|is not a state dict)"):
        load_organ_model("totalsegmentator", own, device="cpu")
    assert "It ran." not in capsys.readouterr().out


def test_the_extra_is_named(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dynamic_network_architectures.architectures.unet", None)
    with pytest.raises(MissingExtraError, match=r"baps-monailabel\[totalsegmentator\]"):
        load_organ_model("totalsegmentator", own, device="cpu")
