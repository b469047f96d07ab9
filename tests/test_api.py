from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import baps
from baps.blackbox import BlackBox
from baps.fseft.adapters import InputKind
from baps.fseft.feature_cache import FeatureCache
from baps.fseft.inference import compute_inputs
from baps.fseft.models import FoundationModel, OrganModel, build_unet
from baps.fseft.predictor import OrganSegmenter
from baps.imaging.canvas import Plane
from baps.inference.segmenter import Segmenter
from baps.prompts import Prompt
from baps.registry.store import AdapterStore
from tests.support.brightness import BrightnessBlackBox
from tests.support.paths import ROOT

SAMPLE = ROOT / "sample-data" / "ct" / "images" / "ct_01.nii.gz"

NewPhantom = Callable[..., tuple[baps.Volume, NDArray[np.bool_]]]


def test_importing_the_package_is_light_and_offers_the_public_names() -> None:
    heavy = "{'torch', 'monailabel', 'numpy', 'nibabel', 'requests', 'pydantic'}"
    program = f"import sys, baps; print({heavy} & set(sys.modules), 'segment' in dir(baps))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set() True"
    for name in baps.__all__:
        assert getattr(baps, name).__doc__, name


def test_a_slice_is_segmented_as_the_server_segments_it(bundled: BlackBox, tmp_path: Path) -> None:
    mask = baps.segment(str(SAMPLE), [(39, 60, 12)], [(20, 20, 12)], black_box=bundled)
    segmenter = Segmenter(bundled, AdapterStore(tmp_path))
    prompt = Prompt(((39.0, 60.0),), ((20.0, 20.0),))
    expected = segmenter.segment(SAMPLE, Plane(2, 12), prompt).mask
    assert expected.any()
    assert np.array_equal(Plane(2, 12).extract(mask.voxels), expected)
    assert mask.voxels.sum() == expected.sum()
    assert mask.same_geometry(baps.read_volume(SAMPLE))


def test_a_box_and_another_plane(new_phantom: NewPhantom, new_black_box: Callable[..., BrightnessBlackBox]) -> None:
    volume, ball = new_phantom()
    box = [float(edge) for axis in np.nonzero(ball) for edge in (axis.min(), axis.max())]
    mask = baps.segment(volume, box=box, plane="coronal", black_box=new_black_box())
    marked = np.nonzero(mask.voxels)
    assert len(marked[0]) > 0
    assert 1 in [len(set(axis.tolist())) for axis in marked]  # One slice, and not across K.
    assert len(set(marked[2].tolist())) > 1


def test_an_adapter_is_used(new_phantom: NewPhantom, bundled: BlackBox, lively_head: object) -> None:
    volume, ball = new_phantom()
    click = [tuple(float(np.median(axis)) for axis in np.nonzero(ball))]
    adapter = replace(_identity(), head=lively_head)
    plain, adapted = (baps.segment(volume, click, black_box=bundled, adapter=one) for one in (None, adapter))
    assert not np.array_equal(plain.voxels, adapted.voxels)
    across_i = [baps.segment(volume, click, plane="I", black_box=bundled, adapter=one) for one in (None, adapter)]
    assert np.array_equal(across_i[0].voxels, across_i[1].voxels)


def _identity() -> baps.Adapter:
    from baps.adapters.adapter import identity_adapter

    return identity_adapter()


@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.nii", "mask.nrrd"])
def test_what_is_written_is_read_back(new_phantom: NewPhantom, tmp_path: Path, name: str) -> None:
    volume, ball = new_phantom()
    written = baps.Volume(ball.astype(np.uint8), volume.affine)
    baps.write_volume(tmp_path / name, written)
    read = baps.read_volume(str(tmp_path / name))
    assert np.array_equal(read.voxels, written.voxels)
    assert read.same_geometry(written)


def test_errors_are_one_sentence(new_phantom: NewPhantom, tmp_path: Path, bundled: BlackBox) -> None:
    volume, _ = new_phantom()
    with pytest.raises(baps.InputError, match=r"ends in \.nii\.gz"):
        baps.write_volume(tmp_path / "mask.png", volume)
    with pytest.raises(baps.InputError, match="There is no click and no box"):
        baps.segment(volume, black_box=bundled)
    with pytest.raises(baps.InputError, match="There is no black box named 'none'"):
        baps.load_black_box("none")
    with pytest.raises(baps.InputError, match="There is no organ model named 'none'"):
        baps.load_organ_model("none")
    for call in (baps.adapt, baps.evaluate):
        with pytest.raises(baps.InputError, match="There is no folder"):
            call(tmp_path / "images", tmp_path / "labels", black_box=bundled)
    with pytest.raises(baps.InputError, match="There is no folder"):
        baps.adapt_organ(tmp_path / "images", tmp_path / "labels", 1, "spleen", max_volumes=1)


@pytest.fixture
def organ_model() -> OrganModel:
    """Build an untrained organ model that knows two organs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OrganModel("small", build_unet(("spleen", "liver")).eval(), "c" * 64, spacing=2.0, side=16)


def test_an_organ_is_adapted_and_segmented(
    new_phantom: NewPhantom, organ_model: OrganModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (0, 1):
        volume, ball = new_phantom(seed=number)
        for folder, written in (("images", volume), ("labels", baps.Volume(ball.astype(np.uint8), volume.affine))):
            (tmp_path / folder).mkdir(exist_ok=True)
            baps.write_volume(tmp_path / folder / f"ball{number}.nii.gz", written)
    computed: list[str] = []

    def compute_and_count(network: FoundationModel, input_kind: InputKind, *rest: Any) -> torch.Tensor:
        computed.append(input_kind)
        return compute_inputs(network, input_kind, *rest)

    monkeypatch.setattr("baps.fseft.feature_cache.compute_inputs", compute_and_count)
    reports: list[tuple[int, int]] = []
    settings = baps.OrganSettings("linear_probe", learning_rate=0.03, epochs=30, crop=12)
    adaptation = baps.adapt_organ(
        tmp_path / "images",
        tmp_path / "labels",
        1,
        "heart",
        model=organ_model,
        settings=settings,
        progress=lambda epoch, epochs, _: reports.append((epoch, epochs)),
    )
    assert isinstance(adaptation, baps.OrganAdaptation)
    assert {total for _, total in reports} == {3 * settings.epochs}
    assert computed == ["features", "features"]  # Once per volume, for three fits and their evaluation.

    baps.write_adapter(tmp_path / "heart.adapter", adaptation.adapter, adaptation.record)
    adapter, record = baps.read_organ_adapter(tmp_path / "heart.adapter", organ_model)
    assert record["adapter"]["organ"] == "heart"
    volume, ball = new_phantom(seed=2)
    mask = baps.segment_organ(volume, "heart", adapter, model=organ_model)
    assert mask.voxels.dtype == np.uint8
    assert mask.same_geometry(volume)
    assert baps.dice(mask.voxels > 0, ball) > 0.6


def test_an_organ_is_segmented_by_the_unadapted_model(
    new_phantom: NewPhantom, organ_model: OrganModel, tmp_path: Path
) -> None:
    volume, _ = new_phantom()
    baps.write_volume(tmp_path / "image.nii.gz", volume)
    mask = baps.segment_organ(tmp_path / "image.nii.gz", "liver", model=organ_model)
    segmenter = OrganSegmenter(organ_model, AdapterStore(tmp_path / "organs"), FeatureCache(None))
    np.testing.assert_array_equal(mask.voxels, segmenter.segment(volume, {"liver": 1}).labelmap)
    with pytest.raises(baps.InputError, match=r"does not know heart. Give an adapter, or one of: spleen, liver\."):
        baps.segment_organ(volume, "heart", model=organ_model)
