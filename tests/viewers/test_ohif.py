"""OHIF in Chromium, against the real server and a real PACS."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import requests
from dicomweb_client import DICOMwebClient
from numpy.typing import NDArray
from playwright.sync_api import Browser

from baps.imaging.metrics import dice
from baps.io import read_labels, read_volume
from baps.server.datastores.dicomweb import open_pacs
from baps.server.training_cases import labelled_cases
from tests.support.ohif import Inference, Ohif, coloured
from tests.support.pacs_site import CASES, Pacs
from tests.support.series import ORIENTATIONS, Series, inside

pytestmark = pytest.mark.slow
LIVER, SPLEEN = 1, 2


@pytest.fixture
def viewer(pacs: Pacs, browser: Browser) -> Iterator[Ohif]:
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.set_default_timeout(60_000)
    yield Ohif(page, pacs.server)
    page.close()


def test_the_list_of_studies(viewer: Ohif, pacs: Pacs) -> None:
    viewer.wait_for_studies(series.patient for series in pacs.series.values())
    viewer.look("studies")


def test_all_links_lead_to_a_page(viewer: Ohif, pacs: Pacs) -> None:
    viewer.wait_for_studies([pacs.series["axial"].patient])
    assert viewer.page.get_by_text("Upload").count() == 0
    viewer.open(pacs.series["axial"].study)
    viewer.connect()
    links = viewer.page.locator(".monaiLabelPanel a:visible")
    led = {str(dataset.evaluate("link => link.href")): dataset.inner_text() for dataset in links.all()}
    assert {"Info", "Options / Configurations"} <= set(led.values())
    assert "Logs" not in led.values()
    for address in filter(None, led):
        assert requests.get(address, timeout=60).ok
    assert "Orthanc" not in viewer.page.inner_text("body")


@pytest.mark.parametrize(
    ("name", "orientation", "organ"),
    [*((orientation, orientation, SPLEEN) for orientation in ORIENTATIONS), ("real", "axial", LIVER)],
)
def test_click_shows_a_mask_at_its_position(viewer: Ohif, pacs: Pacs, name: str, orientation: str, organ: int) -> None:
    """OHIF sends the voxels of the click, and draws the mask of the reply."""
    if name not in pacs.series:
        pytest.skip("There are no real images beside the repository; set BAPS_REAL_DATA.")
    series = pacs.series[name]
    voxel, world = inside(series, organ)
    viewer.open(series.study)
    viewer.connect()
    viewer.prompt_for("zero_shot", "spleen")
    position = viewer.scroll_to(orientation, world)
    before = int(coloured(viewer.look(f"{name}-before"), position).sum())
    viewer.click(position)
    result = viewer.run()
    after = viewer.look_for_overlay(f"{name}-after", position, before)
    assert result.status == 200
    assert viewer.page.get_by_text("No Train Tasks").count() == 0  # The slice was never requested.
    (sent,) = result.params["foreground"]
    assert np.abs(np.array(sent) - voxel).max() <= 1
    assert sent[2] == voxel[2]
    stream = io.BytesIO(result.body)
    voxels = nrrd.read_data(nrrd.read_header(stream), stream)
    mask = voxels[:, :, sent[2]] > 0
    assert voxels.shape == series.labels.shape
    assert mask[sent[0], sent[1]]
    assert not np.delete(voxels, sent[2], axis=2).any()
    area = np.linalg.norm(series.affine[:3, 0]) * np.linalg.norm(series.affine[:3, 1]) * position.pixels_per_mm**2
    assert after - before == pytest.approx(mask.sum() * area, rel=0.25)


def _mask_of(result: Inference) -> NDArray[np.uint8]:
    """Return the voxels of a reply."""
    assert result.status == 200
    stream = io.BytesIO(result.body)
    voxels: NDArray[np.uint8] = nrrd.read_data(nrrd.read_header(stream), stream)
    return voxels


def _click(viewer: Ohif, series: Series, model: str, orientation: str = "axial") -> Inference:
    """Open a study and click in its spleen."""
    viewer.open(series.study)
    viewer.connect()
    viewer.prompt_for(model, "spleen")
    viewer.click(viewer.scroll_to(orientation, inside(series)[1]))
    return viewer.run()


def _read_stored_labels(pacs: Pacs, folder: Path, series: Series) -> dict[str, NDArray[np.bool_]]:
    """Read the stored label of a series with dcmqi, in the order of the series' voxels."""
    address = f"{pacs.orthanc}/dicom-web"
    reply = requests.get(f"{address}/studies/{series.study}/series", {"Modality": "SEG"}, timeout=30).json()
    newest = max(
        (dataset["0020000E"]["Value"][0] for dataset in reply), key=lambda uid: _created_at(address, series, uid)
    )
    client = DICOMwebClient(address)
    (created,) = client.retrieve_series(series.study, newest)
    folder.mkdir()
    created.save_as(folder / "seg.dcm", write_like_original=False)
    command = [Path(sys.executable).with_name("segimage2itkimage"), "--inputDICOM", folder / "seg.dcm"]
    subprocess.run([*command, "--outputDirectory", folder, "-t", "nii"], check=True, capture_output=True)
    results = {}
    for segment in created.SegmentSequence:
        read = nibabel.load(folder / f"{segment.SegmentNumber}.nii.gz")
        to_series = np.linalg.inv(series.affine) @ np.diag([-1.0, -1, 1, 1]) @ read.affine
        marked = np.argwhere(np.asarray(read.dataobj) > 0)
        i, j, k = np.rint(to_series[:3, :3] @ marked.T + to_series[:3, 3:]).astype(int)
        results[str(segment.SegmentLabel)] = np.zeros(series.labels.shape, bool)
        results[str(segment.SegmentLabel)][i, j, k] = True
    return results


def _created_at(address: str, series: Series, uid: str) -> str:
    reply = requests.get(f"{address}/studies/{series.study}/series/{uid}/metadata", timeout=30).json()
    date, when = (reply[0][tag]["Value"][0] for tag in ("00080023", "00080033"))
    return f"{date}{float(when):013.6f}"


def _completed(pacs: Pacs) -> int:
    completed: int = requests.get(f"{pacs.server}/info/", timeout=60).json()["datastore"]["completed"]
    return completed


@pytest.mark.parametrize("orientation", ["coronal", "sagittal"])  # Slices numbered against the normal and along it.
def test_mask_is_saved_and_replaced_by_an_export(
    viewer: Ohif, pacs: Pacs, orientation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series, before = pacs.series[orientation], _completed(pacs)
    _click(viewer, series, "baps", orientation)
    assert _completed(pacs) == before
    viewer.choose("infer", "baps", save_as="spleen")
    shown = _mask_of(viewer.run())
    viewer.page.get_by_text("Saved as spleen.").wait_for()
    assert _completed(pacs) == before + 1  # This enables Slicer's button Train.
    np.testing.assert_array_equal(_read_stored_labels(pacs, tmp_path / "saved", series)["spleen"], shown > 0)
    viewer.run()
    reply = requests.get(f"{pacs.orthanc}/dicom-web/studies/{series.study}/series", {"Modality": "SEG"}, timeout=30)
    assert len(reply.json()) == 1  # The same mask is saved only once.

    viewer.open_segmentation(series.study, "BAPS: spleen")
    viewer.paint("spleen")
    viewer.look("segmentation")
    assert viewer.export_segmentation("by hand") == 200
    exported = _read_stored_labels(pacs, tmp_path / "exported", series)
    assert exported.keys() == {"spleen"}
    assert (exported["spleen"] & (shown > 0)).sum() == (shown > 0).sum()
    assert exported["spleen"].sum() > (shown > 0).sum()
    assert _completed(pacs) == before + 1

    monkeypatch.setattr("monailabel.config.settings.MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path / "cache"))
    cases, skipped = labelled_cases(open_pacs(f"{pacs.orthanc}/dicom-web"), {"spleen": 2}, {})
    assert skipped == {}
    (case,) = (case for case in cases["spleen"] if case.patient == f"phantom-{orientation}")
    np.testing.assert_array_equal(read_labels(case.labels, read_volume(case.image)) > 0, exported["spleen"])


def test_whole_organ_is_shown_on_other_slices(viewer: Ohif, pacs: Pacs, tmp_path: Path) -> None:
    series = pacs.series["axial"]
    voxel, world = inside(series)
    viewer.open(series.study)
    viewer.connect()
    viewer.choose("infer", "whole_organ", save_as="spleen")
    viewer.prompt_for("whole_organ", "spleen")
    beside = world + series.affine[:3, 2]
    before = int(coloured(viewer.look("organ-before"), viewer.scroll_to("axial", beside)).sum())
    viewer.click(viewer.scroll_to("axial", world))
    shown = _mask_of(viewer.run()) > 0
    viewer.look_for_overlay("organ", viewer.scroll_to("axial", beside), before)
    assert shown[tuple(voxel)]
    assert shown[:, :, voxel[2] + 1].any()
    assert shown.any((0, 1)).sum() > 2
    np.testing.assert_array_equal(_read_stored_labels(pacs, tmp_path / "saved", series)["spleen"], shown)


def test_organs_without_a_click(viewer: Ohif, pacs: Pacs) -> None:
    """The model has random weights; its masks are drawn wherever they are."""
    series = pacs.series["axial"]
    viewer.open(series.study)
    viewer.connect()
    position = viewer.scroll_to("axial", inside(series)[1])
    before = int(coloured(viewer.look("organs-before"), position).sum())
    voxels = _mask_of(viewer.segment_all("organs"))
    assert voxels.shape == series.labels.shape
    assert set(np.unique(voxels)) == {0, SPLEEN}
    viewer.page.get_by_text("Running Segmentation - Successful").wait_for()
    drawn = voxels == SPLEEN
    k = int(drawn.sum((0, 1)).argmax())
    i, j = np.argwhere(drawn[:, :, k]).mean(0).round().astype(int)
    position = viewer.scroll_to("axial", series.affine[:3, :3] @ [i, j, k] + series.affine[:3, 3])
    viewer.look_for_overlay("organs-after", position, before)


def test_training_from_the_viewer_and_click_with_the_new_adapter(viewer: Ohif, pacs: Pacs, tmp_path: Path) -> None:
    for case in CASES[:-1]:
        series = pacs.series[case]
        path = tmp_path / f"{case}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(series.labels, np.diag([-1.0, -1, 1, 1]) @ series.affine), path)
        segments = [{"name": f"value {value}", "idx": value} for value in (1, 3, 4, 5)] + [{"name": "spleen", "idx": 2}]
        with path.open("rb") as file:
            reply = requests.put(
                f"{pacs.server}/datastore/label?image={series.uid}",
                {"params": json.dumps({"label_info": segments})},
                files={"label": file},
                timeout=60,
            )
        assert reply.status_code == 200, reply.text
    series = pacs.series[CASES[-1]]
    zero_shot = _mask_of(_click(viewer, series, "baps"))
    viewer.choose("train", "baps", label="spleen", max_images="1500")
    page = viewer.page
    page.get_by_text("Active Learning").click()
    with page.expect_response(
        lambda response: "/train/" in response.url and response.request.method == "POST"
    ) as reported:
        page.get_by_role("button", name="Update Model").click()
    assert reported.value.status == 200, reported.value.text()
    stats, epochs, deadline = {}, set(), time.monotonic() + 600
    while "total_time" not in stats:
        stats = requests.get(f"{pacs.server}/info/", timeout=30).json()["train_stats"]["baps"]
        epochs.add(stats["epoch"])
        assert time.monotonic() < deadline, stats
        time.sleep(1)
    assert stats["adapters"]["spleen"]["status"] == "published", stats
    assert len(epochs) > 3  # The progress was displayed.
    viewer.open(series.study)
    viewer.connect()
    viewer.choose("infer", "baps", adapter="spleen")
    viewer.prompt_for("baps", "spleen")
    position = viewer.scroll_to("axial", inside(series)[1])
    viewer.click(position)
    adapted = _mask_of(viewer.run())
    viewer.look("adapted")
    k = inside(series)[0][2]
    reference = series.labels[:, :, k] == SPLEEN
    before, after = (dice(mask[:, :, k] > 0, reference) for mask in (zero_shot, adapted))
    assert after > before


def test_refusal_of_a_series_is_shown_by_the_viewer(viewer: Ohif, pacs: Pacs) -> None:
    series = pacs.series["gap"]
    assert _click(viewer, series, "zero_shot").status == 400
    viewer.page.get_by_text("missing").wait_for()  # OHIF's own message says only that the request failed.
    viewer.page.wait_for_timeout(1000)
    viewer.look("gap")
    assert not list(pacs.cache.rglob(f"{series.uid}*"))
    assert requests.get(f"{pacs.server}/info/", timeout=30).status_code == 200


def test_next_sample_opens_what_the_server_offers(viewer: Ohif, pacs: Pacs) -> None:
    page, current, offered = viewer.page, pacs.series["axial"], ""
    for _ in range(20):  # The sample is random and may be the open one.
        viewer.open(current.study)
        viewer.connect()
        page.get_by_text("Active Learning").click()
        with page.expect_response(lambda response: "/activelearning/random" in response.url) as waiting:
            page.get_by_role("button", name="Next Sample").click()
        offered = waiting.value.json()["id"]
        if offered != current.uid:
            break
    (expected,) = (series for series in pacs.series.values() if series.uid == offered)
    page.get_by_text(offered).wait_for()
    viewer.look("next-sample")
    page.once("dialog", lambda dialog: dialog.accept())  # OHIF asks for confirmation before it leaves the page.
    page.get_by_text("OK", exact=True).click()
    page.wait_for_url(f"**StudyInstanceUIDs={expected.study}*")


def test_no_patient_is_named_in_the_servers_log(pacs: Pacs) -> None:
    assert "phantom-" not in pacs.log.read_text()
