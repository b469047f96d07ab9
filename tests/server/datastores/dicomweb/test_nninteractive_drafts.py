"""From a click in nnInteractive's client to a segmentation in a real PACS."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from io import BytesIO
from pathlib import Path

import highdicom
import httpx
import numpy as np
import pydicom
import pytest
import requests
import SimpleITK as sitk  # noqa: N813
from nnInteractive.inference.remote import nnInteractiveRemoteInferenceSession
from numpy.typing import NDArray

from baps.annotations.drafts import DraftStore
from demo import orthanc
from tests.support.client import threaded_site
from tests.support.series import inside, write_series
from tests.support.sites import Site

pytestmark = pytest.mark.skipif(bool(orthanc.missing()), reason=orthanc.missing())


def draw(site: Site, folder: Path, click: list[int]) -> tuple[NDArray[np.bool_], list[str]]:
    """Click in a series that SimpleITK reads, as 3D Slicer does; return the mask, (K, J, I), and its slices' UIDs."""
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    voxels = sitk.GetArrayFromImage(sitk.ReadImage(files))
    instances = [str(pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID) for file in files]
    with closing(nnInteractiveRemoteInferenceSession(f"{site.address}/nninteractive/spleen")) as session:
        session.set_image(np.ascontiguousarray(voxels)[None], {"spacing": [1.0, 1.0, 1.0]})
        mask = np.zeros(voxels.shape, np.uint8)
        session.set_target_buffer(mask)
        session.add_point_interaction(click, True)
        assert mask[tuple(click)]
    return mask > 0, instances


def labels(address: str) -> list[highdicom.seg.Segmentation]:
    """Return all labels of the PACS, queried from it directly."""
    query = {"Level": "Instance", "Query": {"Modality": "SEG"}}
    found = requests.post(f"{address}/tools/find", json=query, timeout=30).json()
    return [
        highdicom.seg.segread(BytesIO(requests.get(f"{address}/instances/{one}/file", timeout=30).content))
        for one in found
    ]


def test_a_confirmed_draft_is_a_segmentation_of_its_series(
    empty_orthanc: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from monailabel.config import settings

    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path / "cache"))
    address = empty_orthanc()
    series = write_series(tmp_path / "drawn", "coronal", "ct_01", patient="A")
    write_series(tmp_path / "other", "axial", "ct_02", patient="B")
    for folder in ("drawn", "other"):
        orthanc.store(address, tmp_path / folder)
    with threaded_site(tmp_path, cases=0, pacs=f"{address}/dicom-web") as site:
        column, row, number = inside(series)[0].tolist()
        files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "drawn"))
        clicked = sorted((tmp_path / "drawn").iterdir())[number]
        mask, instances = draw(site, tmp_path / "drawn", [[Path(one) for one in files].index(clicked), row, column])
        (draft,) = DraftStore(site.adapters / "drafts", 100, 1 << 28).all()

        def confirm(**form: str) -> httpx.Response:
            return httpx.post(
                f"{site.address}/web/labels/draft/confirm",
                data={"draft": draft.name, **form},
                headers={"Origin": site.address},
                timeout=60,
            )

        unnamed = confirm()  # Nothing of the PACS is on this server yet, and nothing is fetched for a guess.
        assert unnamed.status_code == 400
        assert "name its series" in unnamed.text
        assert labels(address) == []
        assert confirm(image=series.uid).status_code == 303
        assert DraftStore(site.adapters / "drafts", 100, 1 << 28).all() == []
    (label,) = labels(address)
    assert label.ReferencedSeriesSequence[0].SeriesInstanceUID == series.uid
    assert label.PatientID == "A"
    (segment,) = label.get_segment_numbers(segment_label="spleen")
    saved = label.get_pixels_by_source_instance(
        instances, segment_numbers=[segment], assert_missing_frames_are_empty=True
    )
    assert np.array_equal(saved[..., 0] > 0, mask)
