from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from baps.server.datastores.folder import StudiesDatastore
from baps.server.labels.save_labels import save_label
from baps.server.training_cases import label_versions, labelled_cases
from tests.support.sites import SAMPLES, sample_labels

SITE = {"liver": 1, "spleen": 2}


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    for case in ("ct_01", "ct_02"):
        shutil.copy(SAMPLES / "images" / f"{case}.nii.gz", tmp_path)
    return tmp_path


def _save(datastore: StudiesDatastore, case: str, **info: object) -> None:
    save_label(datastore, SITE, case, SAMPLES / "labels" / f"{case}.nii.gz", "final", info)


def test_annotated_slices_come_from_the_mask_not_from_the_client(studies: Path) -> None:
    datastore = StudiesDatastore(str(studies), auto_reload=False, read_only=False)
    _save(datastore, "ct_01", slices=[8, 9])
    _save(datastore, "ct_02", annotated_slices="everything")
    cases, skipped = labelled_cases(datastore, SITE, {})
    assert skipped == {}
    assert [case.annotated_slices for case in cases["liver"]] == [
        {8, 9},
        set((sample_labels("ct_02") == 1).any((0, 1)).nonzero()[0]),
    ]


def test_annotated_slices_may_be_missing_or_damaged(studies: Path) -> None:
    datastore = StudiesDatastore(str(studies), auto_reload=False, read_only=False)
    for case in ("ct_01", "ct_02"):
        _save(datastore, case)
    datastore.update_label_info("ct_01", "final", {"annotated_slices": None})
    datastore.update_label_info("ct_02", "final", {"annotated_slices": {"spleen": "everywhere"}})
    cases, skipped = labelled_cases(datastore, SITE, {})
    assert [(case.patient, case.annotated_slices) for case in cases["spleen"]] == [("ct_01", None)]
    assert skipped.keys() == {"ct_02"}
    assert "annotated_slices.spleen" in skipped["ct_02"]


def test_versions_of_labels_change_with_their_content_and_leave_out_what_is_disputed(studies: Path) -> None:
    datastore = StudiesDatastore(str(studies), auto_reload=False, read_only=False)
    assert label_versions(datastore, SITE) == {"liver": {}, "spleen": {}}
    _save(datastore, "ct_01")
    first = label_versions(datastore, SITE)
    assert first["liver"].keys() == first["spleen"].keys() == {"ct_01"}
    _save(datastore, "ct_01")
    assert label_versions(datastore, SITE) == first
    _save(datastore, "ct_02", confirmed=False)
    assert label_versions(datastore, SITE) == first
    cases, _ = labelled_cases(datastore, SITE, {}, "ct_01")
    assert [case.patient for case in cases["spleen"]] == ["ct_01"]
    assert labelled_cases(datastore, SITE, {}, "ct_02")[0] == {"liver": [], "spleen": []}
    datastore.update_label_info("ct_01", "final", {"disputed": {"spleen": {"version": "x", "author": "Ann"}}})
    assert label_versions(datastore, SITE)["spleen"] == {}
    assert label_versions(datastore, SITE)["liver"].keys() == {"ct_01"}
