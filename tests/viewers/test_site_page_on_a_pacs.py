"""Open the site's page in Chromium on a real PACS, which then stops: the page says so, and the rest of it works."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import requests
from playwright.sync_api import Browser, Page
from pydicom.dataset import Dataset

from baps.demo.server import running_server
from baps.server.datastores.dicomweb.outbox import Outbox
from demo import orthanc
from tests.support.ohif import SCREENSHOTS
from tests.support.series import Series, write_series

pytestmark = [pytest.mark.slow, pytest.mark.pacs]

PATHS = ("/", "/web/train", "/web/adapters", "/web/labels", "/web/labels/readers", "/web/labels/next", "/web/people")


@pytest.mark.skipif(bool(orthanc.missing()), reason=orthanc.missing())
def test_the_page_while_the_pacs_answers_and_after_it_has_stopped(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MONAI_LABEL_DATASTORE_CACHE_PATH", str(tmp_path / "cache"))
    series = write_series(tmp_path / "dicom" / "axial", "axial", patient="phantom-page")
    settings = {"labels": "spleen=2,liver=1", "adapters": str(tmp_path / "adapters")}
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    with ExitStack() as pacs:
        address = pacs.enter_context(orthanc.running_orthanc(tmp_path, reachable=True))
        orthanc.store(address, tmp_path / "dicom")
        with running_server(f"{address}/dicom-web", tmp_path / "server.log", settings) as (server, _):
            assert _save(server, series).status_code == 200
            _load_until(page, f"{server}/", "answers; no label waits to be sent")
            _load_until(page, f"{server}/", "With confirmed labels 1")
            page.get_by_role("link", name="Open OHIF").wait_for()
            _load_until(page, f"{server}/web/labels", "1 label")
            assert page.get_by_role("link", name=series.uid).is_visible()
            page.get_by_role("link", name=series.uid).click()
            page.get_by_text("Objects in a PACS are never changed").wait_for()
            label = _stored_label(address)
            pacs.close()
            assert _save(server, series).status_code == 503
            (register,) = (tmp_path / "cache").rglob("labels.sqlite")
            Outbox(register.parent / "unsent").add(label)  # As if the PACS had stopped while it was sent.
            _load_until(page, f"{server}/", "does not answer; 1 label waits to be sent")
            attention = page.get_by_role("region", name="Needs attention")
            attention.get_by_text("The PACS cannot be reached.").first.wait_for()
            attention.get_by_text("1 label waits on this server to be sent to the PACS.").wait_for()
            attention.get_by_text("Nobody needs to submit again").wait_for()
            _look(page, "pacs-down")
            for path in PATHS:
                reply = page.goto(f"{server}{path}")
                assert reply is not None
                assert reply.status == 200, path
                assert page.get_by_role("heading", level=1).inner_text() != "That did not work"
            _load_until(page, f"{server}/web/labels", "The PACS cannot be reached.")
            assert page.get_by_role("link", name=series.uid).is_visible()  # What was listed before.
            _look(page, "pacs-down-labels")
    page.context.close()


def _save(server: str, series: Series) -> requests.Response:
    """Save the labels of a series as OHIF does."""
    affine = np.diag([-1.0, -1, 1, 1]) @ series.affine
    kept = np.where(series.labels <= 2, series.labels, 0).astype(np.uint8)
    content = nibabel.Nifti1Image(kept, affine).to_bytes()
    segments = [{"name": "spleen", "idx": 2}, {"name": "liver", "idx": 1}]
    return requests.put(
        f"{server}/datastore/label?image={series.uid}",
        {"params": json.dumps({"label_info": segments})},
        files={"label": ("label.nii", content)},
        timeout=60,
    )


def _stored_label(address: str) -> Dataset:
    """Fetch the DICOM SEG from Orthanc."""
    for instance in requests.get(f"{address}/instances", timeout=30).json():
        content = pydicom.dcmread(BytesIO(requests.get(f"{address}/instances/{instance}/file", timeout=30).content))
        if content.Modality == "SEG":
            return content
    raise AssertionError("Orthanc has no DICOM SEG.")


def _load_until(page: Page, address: str, text: str) -> None:
    """Load a page again until it shows a text, because it computes some values in the background."""
    deadline = time.monotonic() + 90
    page.goto(address)
    while text not in (shown := " ".join(page.inner_text("main").split())):
        assert time.monotonic() < deadline, shown
        page.wait_for_timeout(1000)
        page.goto(address)


def _look(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"page-{name}.png", full_page=True)
