"""A server for its own machine, as ``make serve`` starts it, with patients whose names the tests know."""

from __future__ import annotations

from collections.abc import Iterator

import pydicom
import pytest

from tests.support.marks import starts
from tests.support.paths import ROOT
from tests.support.patient_names import BROKEN, IMAGE, NAME, ORIGIN, PATIENT, SiteWithPatientNames
from tests.support.sites import site


@pytest.fixture(scope="session")
@starts("server")
def site_with_names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteWithPatientNames]:
    folder = tmp_path_factory.mktemp("site_with_names")
    words = {"ZEBRA", "QUENTIN", PATIENT}

    def add() -> None:
        for image in (IMAGE, BROKEN):
            (folder / "studies" / image).mkdir()
            for file in (ROOT / "sample-data" / "dicom" / "ct_01").iterdir():
                slice_ = pydicom.dcmread(file)
                slice_.PatientName, slice_.PatientID = NAME, PATIENT
                slice_.save_as(folder / "studies" / image / file.name)
                words.update((str(slice_.StudyInstanceUID), str(slice_.SeriesInstanceUID)))
        cut = folder / "studies" / BROKEN / "004.dcm"
        cut.write_bytes(cut.read_bytes()[:-500])

    for running in site(folder, cases=1, extra=add, settings={"max_upload_mb": "8", "cors_origins": ORIGIN}):
        yield SiteWithPatientNames(running, tuple(words))
