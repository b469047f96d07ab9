"""The organ model of the real server: masks without clicks, training, and Next Sample.

Its weights are random, so the tests check the responses and not the accuracy.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
import requests

from baps.registry.store import AdapterStore
from tests.support.client import threaded_site
from tests.support.organ_weights import small_organ_model
from tests.support.paths import APP
from tests.support.published_checkpoints import new_universal, save_universal
from tests.support.sites import Site, sample_labels, spleen_click

QUICK = {"method": "linear_probe", "epochs": 3, "label": "spleen"}


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server whose tests leave no label and no adapter."""
    folder = tmp_path_factory.mktemp("site")
    with threaded_site(
        folder, cases=3, settings={"organ_weights": str(small_organ_model(folder)), "organ_min_dice": "0"}
    ) as running:
        yield running


@pytest.fixture
def own_hospital(tmp_path: Path) -> Iterator[Site]:
    with threaded_site(
        tmp_path, cases=3, settings={"organ_weights": str(small_organ_model(tmp_path)), "organ_min_dice": "0"}
    ) as running:
        yield running


def post(server: Site, path: str, **options: Any) -> requests.Response:
    return requests.post(f"{server.address}{path}", timeout=120, **options)


def submit(server: Site, case: str) -> None:
    """Submit the reference label of the spleen of a sample volume."""
    affine = nibabel.load(server.studies / f"{case}.nii.gz").affine
    path = server.studies.parent / "label.nii.gz"
    nibabel.save(nibabel.Nifti1Image((sample_labels(case) == 2).astype(np.uint8), affine), path)
    server.client.save_label(case, str(path), "final", {"label_info": [{"name": "spleen", "idx": 1}]})


def train(server: Site, **options: Any) -> dict[str, Any]:
    """Train ``organs``, wait until it ends, and return its statistics."""
    server.client.train_start("organs", {**QUICK, **options})
    while True:
        stats: dict[str, Any] = server.client.info()["train_stats"]["organs"]
        if "total_time" in stats and not server.client.train_status(check_if_running=True):
            return stats
        time.sleep(0.3)


def test_networks_are_imported_when_a_model_is_loaded() -> None:
    program = (
        "import sys, baps.server.strategies.disagreement, baps.server.infer.organs; "
        "import baps.server.train.organs as trainers; "
        "from pathlib import Path; from baps.registry.store import AdapterStore; "
        "trainer = trainers.OrgansTrainer(None, {'spleen': 1}, AdapterStore(Path('x')), Path('x'), None); "
        "trainer.config(); trainer.stats(); "
        "print([name for name in sys.modules if name.startswith('baps.fseft')])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=APP, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['baps.fseft', 'baps.fseft.choices']"


def test_the_organ_model_is_listed_for_viewers(hospital: Site) -> None:
    info = hospital.client.info()
    model = info["models"]["organs"]
    assert (model["type"], model["dimension"]) == ("segmentation", 3)
    assert model["labels"] == {"spleen": 2, "liver": 1}
    assert model["min_dice"] == 0
    assert [name for name, other in info["models"].items() if other["labels"]] == ["organs"]
    assert list(info["trainers"]) == ["baps", "organs"]  # 3D Slicer displays the progress of the first trainer.
    config = info["trainers"]["organs"]["config"]
    assert (config["label"], config["method"][0], config["decoder"]) == (["all", "spleen", "liver"], "landmarks", False)
    assert "disagreement" in info["strategies"]


def test_masks_without_clicks_have_the_geometry_of_the_image(hospital: Site) -> None:
    file, params = hospital.client.infer("organs", "ct_01", {"result_extension": ".nrrd", "result_dtype": "uint8"})
    voxels, header = nrrd.read(file)
    image = nibabel.load(hospital.studies / "ct_01.nii.gz")
    assert (voxels.shape, voxels.dtype) == (image.shape, np.uint8)
    lps = np.diag([-1, -1, 1.0]) @ image.affine[:3]
    assert np.allclose(header["space directions"].T, lps[:, :3], atol=1e-5)
    assert np.allclose(header["space origin"], lps[:, 3], atol=1e-4)
    assert set(np.unique(voxels)) == {0, 2}
    assert params["label_names"] == {"spleen": 2}  # 3D Slicer assigns the names to the segments in order.
    assert params["adapter"] == {"spleen": "unadapted"}
    assert "There is no model for liver" in params["notes"][0]
    assert params["latencies"]["total_ms"] > 0
    readings = hospital.adapters / "organs" / "readings"
    assert readings.stat().st_mode & 0o777 == 0o700
    assert len(list(readings.glob("*.npy"))) == 1
    again, _ = hospital.client.infer("organs", "ct_01", {})
    np.testing.assert_array_equal(nrrd.read(again)[0], voxels)


def test_a_submitted_organ_is_returned_as_it_was_drawn(own_hospital: Site) -> None:
    submit(own_hospital, "ct_01")
    file, params = own_hospital.client.infer("organs", "ct_01", {})
    drawn = sample_labels("ct_01") == 2
    np.testing.assert_array_equal(nrrd.read(file)[0] == 2, drawn)
    assert (params["left_as_drawn"], params["adapter"]) == (["spleen"], {})
    voxel = np.prod(nibabel.load(own_hospital.studies / "ct_01.nii.gz").header.get_zooms())
    assert params["volumes_ml"] == {"spleen": pytest.approx(drawn.sum() * voxel / 1000, abs=0.01)}


def test_ohif_gets_the_same_mask_uncompressed(hospital: Site) -> None:
    params = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
    response = post(hospital, "/infer/organs?image=ct_02&output=image", data={"params": json.dumps(params)})
    assert response.status_code == 200
    assert "liver" in response.headers["X-BAPS-Notes"]
    header, _, data = response.content.partition(b"\n\n")
    assert b"encoding: raw" in header
    file, _ = hospital.client.infer("organs", "ct_02", {})
    np.testing.assert_array_equal(
        np.frombuffer(data, np.uint8).reshape(sample_labels("ct_02").shape, order="F"), nrrd.read(file)[0]
    )


@pytest.mark.parametrize(
    ("path", "options", "status", "message"),
    [
        ("/infer/organs?image=ct_01", {"data": {"params": '{"save_as": "liver"}'}}, 400, "does not know liver"),
        ("/infer/organs?image=ct_01", {"data": {"params": '{"save_as": "heart"}'}}, 400, "no save_as 'heart'"),
        ("/train/organs", {"json": {}}, 400, "no saved labels of any organ"),
        ("/train/organs", {"json": {"method": "magic"}}, 400, "Known ones: linear_probe"),
        ("/train/organs", {"json": {"decoder": "perhaps"}}, 400, "must be of type bool"),
        ("/train/organs", {"json": {"decoder": True}}, 400, "cannot train the decoder"),
        ("/train/organs", {"json": {"epochs": "many"}}, 400, "must be of type int"),
        ("/train/organs", {"json": {"learning_rate": -1}}, 400, "learning_rate must be a positive number"),
        ("/train/organs", {"json": {"max_images": 5}}, 400, "Unknown training options: max_images"),
        ("/train/organs", {"json": {"label": "heart"}}, 400, "no label 'heart'"),
        ("/activelearning/magic", {"json": {}}, 404, "Known ones: random, first, disagreement"),
    ],
)
def test_invalid_requests_are_refused(
    hospital: Site, path: str, options: dict[str, Any], status: int, message: str
) -> None:
    response = post(hospital, path, **options)
    assert (response.status_code, message in response.json()["detail"]) == (status, True), response.text


def test_next_sample_returns_the_disagreement_and_a_reason(hospital: Site) -> None:
    sample = hospital.client.next_sample("disagreement", {})
    assert (hospital.studies / f"{sample['id']}.nii.gz").is_file()
    assert 0 < sample["disagreement"] <= 1
    assert "disagree most here" in sample["reason"]


@pytest.mark.slow
def test_saving_training_and_segmenting(own_hospital: Site) -> None:
    server = own_hospital
    submit(server, "ct_01")
    stats = train(server)
    result = stats["adapters"]["spleen"]
    assert (result["version"], result["status"]) == ("v0001", "candidate")
    assert 0 < stats["best_metric"] <= 1
    assert stats["epoch"] == stats["total_epochs"]
    assert "error" not in stats
    assert "total_time" not in server.client.info()["train_stats"]["baps"]
    store = AdapterStore(server.adapters / "organs")
    record = store.record("spleen", "v0001")
    assert "ct_01" not in json.dumps(record)
    assert not store.checkpoint_folder("spleen").exists()

    _, params = server.client.infer("organs", "ct_03", {})
    assert params["adapter"] == {"spleen": "unadapted"}
    store.publish("spleen", "v0001")
    _, params = server.client.infer("organs", "ct_03", {})
    assert params["adapter"] == {"spleen": "v0001"}

    submit(server, "ct_02")
    result = train(server)["adapters"]["spleen"]
    assert result["version"] == "v0002"
    assert result["status"] in ("on trial", "rejected")
    assert result["against_served"] is not None
    assert server.client.next_sample("disagreement", {})["id"] == "ct_03"  # The others have labels.


@pytest.mark.slow
def test_only_one_training_runs_at_a_time(own_hospital: Site) -> None:
    submit(own_hospital, "ct_01")
    submit(own_hospital, "ct_02")
    started = post(own_hospital, "/train/", json={"max_images": 100_000})
    assert (started.status_code, list(started.json())) == (200, ["baps"])
    for path in ("/train/organs", "/train/baps", "/train/"):
        assert post(own_hospital, path, json={}).status_code == 429
    own_hospital.client.train_stop()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("bundled", "cannot be read"),
        ("suprem_unet", "Its head has 24 classes, and suprem_unet has names for"),
        ("totalsegmentator", "Fetch it with TotalSegmentator's own command"),
    ],
)
def test_clicks_work_without_an_organ_model(model: str, reason: str, tmp_path: Path) -> None:
    weights = tmp_path / "organs.pth"
    if model == "bundled":
        weights.write_bytes(b"junk")
    elif model == "totalsegmentator":
        weights.mkdir()
    else:
        save_universal(weights, new_universal(True, 24))
    settings = {"organ_model": model, "organ_weights": str(weights)}
    with threaded_site(tmp_path, cases=2, settings=settings) as server:
        response = post(server, "/infer/organs?image=ct_01", data={"params": "{}"})
        assert response.status_code == 503
        assert "The organ model cannot be loaded; clicks still work." in response.json()["detail"]
        assert reason in response.json()["detail"]
        file, _ = server.client.infer("baps", "ct_01", {"foreground": [spleen_click("ct_01")]})
        assert nrrd.read(file)[0].any()
        sample = server.client.next_sample("disagreement", {})
        assert "selected at random: The organ model cannot be loaded" in sample["reason"]
