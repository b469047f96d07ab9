"""Whole organs by the 3D model of a site, through the real server and the client of 3D Slicer's module."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
import requests
import torch

from baps.adapters.volumes.adapter import VolumeAdapter
from baps.adapters.volumes.head import VolumeHead
from baps.blackbox.volumes.bundled import load_bundled_volume_model
from baps.imaging.metrics import dice
from baps.registry.store import AdapterStore
from tests.support.client import threaded_site
from tests.support.sites import Site, sample_labels, spleen_click


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with threaded_site(tmp_path_factory.mktemp("site"), cases=2, settings={"volume_black_box": "bundled3d"}) as one:
        yield one


def ask(server: Site, case: str, **params: Any) -> tuple[np.ndarray[Any, Any], dict[str, Any], dict[str, Any]]:
    file, reply = server.client.infer("volume", case, {"label": "spleen", **params})
    voxels, header = nrrd.read(file)
    return voxels, header, reply


def test_viewers_offer_it_where_the_site_has_a_3d_model(running: Site, server: Site) -> None:
    info = running.client.info()
    model = info["models"]["volume"]
    assert (model["type"], model["dimension"], model["labels"]) == ("deepgrow", 3, [])
    assert model["config"] == {
        "adapter": ["as clicked", "spleen", "liver"],
        "save_as": ["do not save", "spleen", "liver"],
    }
    assert info["trainers"]["volume"]["config"]["max_predictions"] == 400
    others = server.client.info()
    assert "volume" not in others["models"]
    assert "volume" not in others["trainers"]


def test_a_click_gives_the_organ_in_the_frame_of_the_image(running: Site) -> None:
    point = spleen_click("ct_01")
    voxels, header, reply = ask(running, "ct_01", foreground=[point])
    image = nibabel.load(running.studies / "ct_01.nii.gz")
    assert voxels.shape == image.shape
    assert set(np.unique(voxels)) == {0, 1}
    assert voxels[tuple(point)] == 1
    assert voxels.any((0, 1)).sum() > 1
    assert dice(voxels > 0, sample_labels("ct_01") == 2) > 0.1  # The size of the organ is a guess.
    lps = np.diag([-1, -1, 1.0]) @ image.affine[:3]
    assert np.allclose(header["space directions"].T, lps[:, :3], atol=1e-5)
    assert np.allclose(header["space origin"], lps[:, 3], atol=1e-4)
    assert reply["adapter"] is None


def test_clicks_beside_the_organ_and_boxes_count(running: Site) -> None:
    point = spleen_click("ct_01")
    first, _, _ = ask(running, "ct_01", foreground=[point])
    beside = np.argwhere(first > 0)[0].tolist()
    second, _, _ = ask(running, "ct_01", foreground=[point], background=[beside])
    assert second[tuple(beside)] == 0
    assert second[tuple(point)] == 1
    where = np.argwhere(sample_labels("ct_01") == 2)
    roi = [value for low, high in zip(where.min(0), where.max(0), strict=True) for value in (int(low), int(high))]
    again, _, _ = ask(running, "ct_01", foreground=[point], background=[beside])
    assert np.array_equal(again, second)
    boxed, _, _ = ask(running, "ct_01", foreground=[], roi=roi)
    assert dice(boxed > 0, sample_labels("ct_01") == 2) > 0.3


def test_a_mask_is_saved_as_a_label(running: Site) -> None:
    mask, _, _ = ask(running, "ct_02", foreground=[spleen_click("ct_02")], save_as="spleen")
    file = sorted((running.studies / "labels").rglob("ct_02*.nii.gz"))[0]
    assert np.array_equal(np.asarray(nibabel.load(file).dataobj) == 2, mask > 0)


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"foreground": []}, "Click on the organ"),
        ({"foreground": [[999, 0, 0]]}, "outside"),
        ({"foreground": [[1, 1, 1]], "save_as": "pancreas"}, "There is no save_as 'pancreas'"),
        ({"roi": [1, 2, 3]}, "The box must be"),
    ],
)
def test_requests_that_cannot_be_answered(running: Site, params: dict[str, Any], sentence: str) -> None:
    reply = requests.post(
        f"{running.address}/infer/volume?image=ct_01&output=image", data={"params": json.dumps(params)}, timeout=60
    )
    assert reply.status_code == 400
    assert sentence in reply.json()["detail"]


def test_the_adapter_of_the_label_is_used(tmp_path: Path) -> None:
    """A head that makes every answer larger."""
    with threaded_site(tmp_path, cases=1, settings={"volume_black_box": "bundled3d"}) as server:
        point = spleen_click("ct_01")
        before, _, _ = ask(server, "ct_01", foreground=[point])
        head = VolumeHead()
        assert head.last.bias is not None
        torch.nn.init.constant_(head.last.bias, 1.0)
        adapter = VolumeAdapter(150.0, head=head.eval())
        identity = load_bundled_volume_model().capabilities.identity
        record = {
            "adapter": adapter.to_dict(),
            "black_box": {"name": "bundled3d", "weights_sha256": identity[0], "preprocessing": identity[1]},
        }
        store = AdapterStore(server.adapters / "volumes")
        store.publish("spleen", store.add("spleen", adapter, record))
        after, _, reply = ask(server, "ct_01", foreground=[point])
        assert reply["adapter"] == "spleen/v0001"
        assert not np.array_equal(before, after)
        _, _, liver = ask(server, "ct_01", foreground=[point], label="liver")
        assert liver["adapter"] is None
