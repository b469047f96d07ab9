"""Save labels and masks of models in a folder of studies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import requests
from numpy.typing import NDArray

from baps.annotations.history import LabelHistory
from baps.errors import InputError, NotFoundError
from baps.imaging.volume import Volume
from baps.io import read_labels, read_volume, write_nifti
from baps.server.datastores.folder import StudiesDatastore
from baps.server.labels.save_labels import save_label, save_mask
from baps.server.training_cases import labelled_cases
from tests.support.sites import SAMPLES, Site, sample_labels, spleen_click

LABELS = {"liver": 1, "spleen": 2, "kidney": 9}


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    shutil.copy(SAMPLES / "images" / "ct_01.nii.gz", tmp_path)
    return tmp_path


def _open(studies: Path) -> tuple[StudiesDatastore, Volume]:
    return StudiesDatastore(str(studies), False, False), read_volume(studies / "ct_01.nii.gz")


def _disc(image: Volume, k: int, width: int = 5) -> NDArray[np.bool_]:
    mask = np.zeros(image.shape, bool)
    mask[10 : 10 + width, 20:24, k] = True
    return mask


def _save(studies: Path, organ: str, mask: NDArray[np.bool_], slices: list[int]) -> str:
    datastore, image = _open(studies)
    return save_mask(datastore, LABELS, "ct_01", image, organ, mask, slices, "baps", "anna")


def _saved(studies: Path) -> NDArray[np.integer]:
    datastore, image = _open(studies)
    return read_labels(Path(datastore.get_label_uri("ct_01", "final")), image)


def test_slices_of_an_organ_are_added_to_one_label(studies: Path) -> None:
    _, image = _open(studies)
    assert _save(studies, "kidney", _disc(image, 3), [3])
    assert _save(studies, "kidney", _disc(image, 4), [4])
    assert _save(studies, "liver", _disc(image, 9), [9])
    expected = np.where(_disc(image, 3) | _disc(image, 4), 9, 0) + _disc(image, 9)
    np.testing.assert_array_equal(_saved(studies), expected)
    cases, skipped = labelled_cases(_open(studies)[0], LABELS, {})
    assert skipped == {}
    assert {name: [case.annotated_slices for case in organ_cases] for name, organ_cases in cases.items()} == {
        "kidney": [{3, 4}],
        "liver": [{9}],
        "spleen": [],
    }


def test_a_corrected_slice_replaces_the_earlier_one(studies: Path) -> None:
    _, image = _open(studies)
    _save(studies, "kidney", _disc(image, 3), [3])
    _save(studies, "kidney", _disc(image, 3, width=2), [3])
    assert (_saved(studies) > 0).sum() == 8
    assert len(LabelHistory(studies).versions("ct_01", "final")) == 2


def test_an_unchanged_mask_is_not_saved_again(studies: Path) -> None:
    _, image = _open(studies)
    assert _save(studies, "kidney", _disc(image, 3), [3])
    file = studies / "labels" / "final" / "ct_01.nii.gz"
    before = file.stat().st_mtime_ns
    assert _save(studies, "kidney", _disc(image, 3), [3]) == "It was saved as kidney before."
    assert file.stat().st_mtime_ns == before
    assert len(LabelHistory(studies).versions("ct_01", "final")) == 1


def test_a_mask_is_added_to_a_submitted_label(studies: Path) -> None:
    """The label has values of its own."""
    datastore, image = _open(studies)
    submitted = np.where(sample_labels("ct_01") == 1, 5, 0).astype(np.uint8)
    path = studies.parent / "submitted.nii.gz"
    write_nifti(path, Volume(submitted, image.affine))
    save_label(datastore, LABELS, "ct_01", path, "final", {"label_info": [{"name": "liver", "idx": 5}]})
    _save(studies, "spleen", _disc(image, 0), [0])
    datastore, _ = _open(studies)
    info = datastore.get_label_info("ct_01", "final")
    values = {segment["name"]: segment["idx"] for segment in info["label_info"]}
    assert values == {"liver": 5, "spleen": 2}
    np.testing.assert_array_equal(_saved(studies), np.where(_disc(image, 0), 2, submitted))
    assert (info["author"], info["model"], info["confirmed"]) == ("anna", "baps", True)
    assert info["annotated_slices"] == {
        "liver": np.flatnonzero((submitted == 5).any((0, 1))).tolist(),
        "spleen": [0],
    }


def test_a_value_without_a_name_in_label_info_is_refused(studies: Path) -> None:
    datastore, image = _open(studies)
    path = studies.parent / "submitted.nii.gz"
    write_nifti(path, Volume(_disc(image, 3).astype(np.uint8) * 6 + _disc(image, 5), image.affine))
    info = {"label_info": [{"name": "liver", "idx": 1}]}
    with pytest.raises(InputError, match=r"values \[6\] of the label have no name \(1 is liver\).*Nothing was saved"):
        save_label(datastore, LABELS, "ct_01", path, "final", info)
    assert datastore.get_labeled_images() == []
    assert LabelHistory(studies).versions("ct_01", "final") == []


def test_unnamed_values_of_a_copied_label_are_kept(studies: Path) -> None:
    _, image = _open(studies)
    (studies / "labels" / "final").mkdir(parents=True, exist_ok=True)
    voxels = np.where(_disc(image, 3), 1, np.where(_disc(image, 7), 6, 0)).astype(np.uint8)
    write_nifti(studies / "labels" / "final" / "ct_01.nii.gz", Volume(voxels, image.affine))
    _save(studies, "spleen", _disc(image, 0), [0])
    np.testing.assert_array_equal(_saved(studies), np.where(_disc(image, 0), 2, voxels))


def test_a_mask_that_cannot_be_saved_changes_nothing(studies: Path) -> None:
    datastore, image = _open(studies)
    arguments = (image, "spleen", _disc(image, 3), [3], "baps")
    with pytest.raises(NotFoundError, match="not in the datastore"):
        save_mask(datastore, LABELS, "../ct_01", *arguments)
    with pytest.raises(InputError, match="no label 'heart'. A mask is saved as one of these: liver, spleen, kidney"):
        save_mask(datastore, LABELS, "ct_01", image, "heart", *arguments[2:])
    with pytest.raises(InputError, match="The mask of spleen is empty"):
        save_mask(datastore, LABELS, "ct_01", image, "spleen", np.zeros(image.shape, bool), [3], "baps")
    assert datastore.get_labeled_images() == []


def _infer(server: Site, image: str, **params: object) -> requests.Response:
    params_json = {"foreground": [spleen_click("ct_01")], "label": "spleen", **params}
    address = f"{server.address}/infer/baps?image={image}&output=json"
    return requests.post(address, data={"params": json.dumps(params_json)}, timeout=60)


def test_the_option_save_as_saves_the_returned_mask(own_server: Site) -> None:
    k = spleen_click("ct_01")[2]
    assert "Saved as spleen." in _infer(own_server, "ct_01", save_as="spleen").json()["notes"]
    assert "It was saved as spleen before." in _infer(own_server, "ct_01", save_as=["spleen"]).json()["notes"]
    assert own_server.client.info()["datastore"]["completed"] == 1
    image = read_volume(own_server.studies / "ct_01.nii.gz")
    saved = read_labels(own_server.studies / "labels" / "final" / "ct_01.nii.gz", image)
    returned = own_server.client.infer("zero_shot", "ct_01", {"foreground": [spleen_click("ct_01")]})[0]
    np.testing.assert_array_equal(saved == 2, read_labels(Path(returned), image) > 0)
    assert np.flatnonzero(saved.any((0, 1))).tolist() == [k]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"save_as": "heart"}, "There is no save_as 'heart'"),
        ({"save_label": True}, "saved as a label of the site"),
        ({"save_as": "spleen", "plane": "coronal"}, "Only a mask of a stored slice"),
    ],
)
def test_a_save_without_a_name_is_refused(server: Site, option: dict[str, object], message: str) -> None:
    reply = _infer(server, "ct_01", **option)
    assert reply.status_code == 400
    assert message in reply.json()["detail"]
    assert server.client.info()["datastore"]["completed"] == 0


def test_nothing_is_saved_without_the_option(server: Site) -> None:
    for option in ({}, {"save_as": ["do not save", "spleen"]}, {"save_as": ""}):
        assert _infer(server, "ct_01", **option).status_code == 200
    assert server.client.info()["datastore"]["completed"] == 0


def test_voxels_of_other_organs_are_kept(studies: Path) -> None:
    _, image = _open(studies)
    _save(studies, "liver", _disc(image, 3), [3])
    wide = _disc(image, 3, width=8)
    assert _save(studies, "kidney", wide, [3]) == "Saved as kidney, except 20 voxels that are marked as other organs."
    np.testing.assert_array_equal(_saved(studies), np.where(_disc(image, 3), 1, np.where(wide, 9, 0)))
    with pytest.raises(InputError, match="lies in other organs"):
        _save(studies, "spleen", wide, [3])


def test_a_label_of_all_slices_stays_a_label_of_all_slices(studies: Path) -> None:
    """A label that was copied into the folder has no annotated slices."""
    _, image = _open(studies)
    (studies / "labels" / "final").mkdir(parents=True, exist_ok=True)
    write_nifti(studies / "labels" / "final" / "ct_01.nii.gz", Volume(_disc(image, 3).astype(np.uint8), image.affine))
    _save(studies, "liver", _disc(image, 5), [5])
    _save(studies, "spleen", _disc(image, 7), [7])
    cases, _ = labelled_cases(_open(studies)[0], LABELS, {})
    assert [case.annotated_slices for name in ("liver", "spleen") for case in cases[name]] == [None, {7}]


def test_a_long_author_name_is_shortened(studies: Path) -> None:
    datastore, image = _open(studies)
    arguments = (LABELS, "ct_01", image, "spleen", _disc(image, 3), [3], "baps", "a" * 300)
    save_mask(datastore, *arguments)
    assert [len(cases) for cases in labelled_cases(_open(studies)[0], LABELS, {})[0].values()] == [0, 1, 0]


@pytest.mark.parametrize(("tag", "confirmed", "kept_as"), [("draft", True, "draft"), ("final", False, "original")])
def test_labels_that_are_not_final_are_not_trained_on(studies: Path, tag: str, confirmed: bool, kept_as: str) -> None:
    datastore, image = _open(studies)
    path = studies.parent / "draft.nii.gz"
    write_nifti(path, Volume(np.where(_disc(image, 3), 2, 0).astype(np.uint8), image.affine))
    save_label(datastore, LABELS, "ct_01", path, tag, {"author": "anna", "confirmed": confirmed})
    assert (datastore.get_labeled_images(), datastore.get_unlabeled_images()) == ([], ["ct_01"])
    assert labelled_cases(_open(studies)[0], LABELS, {})[0]["spleen"] == []
    assert list(datastore._datastore.objects["ct_01"].labels) == [kept_as]
    _save(studies, "liver", _disc(image, 9), [9])
    assert set(np.unique(_saved(studies))) == {0, 1}
    assert (studies / "labels" / kept_as / "ct_01.nii.gz").read_bytes() == path.read_bytes()


def test_labels_of_another_process_are_noticed(studies: Path) -> None:
    """For example, labels that the command line imports while the server runs."""
    datastore, image = _open(studies)
    assert datastore.get_labeled_images() == []
    _save(studies, "kidney", _disc(image, 3), [3])  # In another datastore of the same folder.
    assert datastore.get_labeled_images() == ["ct_01"]
    assert datastore.get_label_info("ct_01", "final")["author"] == "anna"


def test_a_training_reads_the_labels_from_its_start(studies: Path) -> None:
    """Labels that are submitted meanwhile are ignored, but a file that was copied into the folder is used."""
    datastore, image = _open(studies)
    _save(studies, "spleen", _disc(image, 3), [3])
    (case,) = labelled_cases(datastore, LABELS, {})[0]["spleen"]
    _save(studies, "spleen", _disc(image, 3, width=2), [3])
    np.testing.assert_array_equal(read_labels(case.labels, image) == case.value, _disc(image, 3))
    by_hand = studies / "labels" / "final" / "ct_01.nii.gz"
    write_nifti(by_hand, Volume(np.where(_disc(image, 5), 2, 0).astype(np.uint8), image.affine))
    (case,) = labelled_cases(datastore, LABELS, {})[0]["spleen"]
    assert case.labels == by_hand.resolve()


def test_unknown_tags_are_refused(studies: Path) -> None:
    datastore, image = _open(studies)
    path = studies.parent / "submitted.nii.gz"
    write_nifti(path, Volume(_disc(image, 3).astype(np.uint8), image.affine))
    for tag in ("mine", "../x", "FINAL", "final\x1b", ""):
        with pytest.raises(InputError, match="must be one of final, draft, original"):
            save_label(datastore, LABELS, "ct_01", path, tag, {})
    assert not (studies / "labels" / "mine").exists()
    assert LabelHistory(studies).labels() == []
