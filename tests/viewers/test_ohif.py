"""OHIF in Chromium, against the real server and a real PACS."""

from __future__ import annotations

import io
from collections.abc import Iterator

import nrrd
import numpy as np
import pytest
from playwright.sync_api import Browser

from ohif import Ohif, coloured
from pacs_site import Pacs
from series import ORIENTATIONS, Series

pytestmark = pytest.mark.slow
SPLEEN = 2


@pytest.fixture
def viewer(pacs: Pacs, browser: Browser) -> Iterator[Ohif]:
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.set_default_timeout(60_000)
    yield Ohif(page, pacs.server)
    page.close()


def _spleen(series: Series) -> tuple[np.ndarray, np.ndarray]:
    """A voxel well inside the spleen, on the slice that shows it best, and where it is, mm, LPS."""
    organ = series.labels == SPLEEN
    k = int(organ.sum((0, 1)).argmax())
    inside = np.argwhere(organ[:, :, k])
    i, j = inside[((inside - inside.mean(0)) ** 2).sum(1).argmin()]
    voxel = np.array([i, j, k])
    return voxel, series.affine[:3, :3] @ voxel + series.affine[:3, 3]


def test_the_list_of_studies(viewer: Ohif, pacs: Pacs) -> None:
    said = viewer.studies()
    viewer.look("studies")
    for orientation in pacs.series:
        assert f"phantom-{orientation}" in said


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_click_shows_a_mask_under_it(viewer: Ohif, pacs: Pacs, orientation: str) -> None:
    """The voxels that are sent are those of the click, and what is drawn is what was answered."""
    series = pacs.series[orientation]
    voxel, world = _spleen(series)
    viewer.open(series.study)
    viewer.connect()
    viewer.prompt_for("zero_shot", "spleen")
    place = viewer.scroll_to(orientation, world)
    before = int(coloured(viewer.look(f"{orientation}-before"), place).sum())
    viewer.click(place)
    found = viewer.run()
    after = viewer.look_for_overlay(f"{orientation}-after", place, before)
    assert found.status == 200
    (sent,) = found.asked["foreground"]
    assert np.abs(np.array(sent) - voxel).max() <= 1
    assert sent[2] == voxel[2]
    stream = io.BytesIO(found.body)
    voxels = nrrd.read_data(nrrd.read_header(stream), stream)
    mask = voxels[:, :, sent[2]] > 0
    assert voxels.shape == series.labels.shape
    assert mask[sent[0], sent[1]]
    assert not np.delete(voxels, sent[2], axis=2).any()
    area = np.linalg.norm(series.affine[:3, 0]) * np.linalg.norm(series.affine[:3, 1]) * place.pixels_per_mm**2
    assert after - before == pytest.approx(mask.sum() * area, rel=0.25)


def test_next_sample_opens_what_the_server_offers(viewer: Ohif, pacs: Pacs) -> None:
    page, here, offered = viewer.page, pacs.series["axial"], ""
    for _ in range(20):  # At random, so it may offer the one that is open.
        viewer.open(here.study)
        viewer.connect()
        page.get_by_text("Active Learning").click()
        with page.expect_response(lambda response: "/activelearning/random" in response.url) as waiting:
            page.get_by_role("button", name="Next Sample").click()
        offered = waiting.value.json()["id"]
        if offered != here.uid:
            break
    (wanted,) = (series for series in pacs.series.values() if series.uid == offered)
    page.get_by_text(offered).wait_for()
    viewer.look("next-sample")
    page.once("dialog", lambda dialog: dialog.accept())  # OHIF asks whether the page may be left.
    page.get_by_text("OK", exact=True).click()
    page.wait_for_url(f"**StudyInstanceUIDs={wanted.study}*")
