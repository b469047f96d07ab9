from __future__ import annotations

import json
from pathlib import Path

import highdicom
import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from typer.testing import CliRunner

from baps.annotations.history import LabelHistory
from baps.cli import app
from baps.errors import InputError

SHAPE = (20, 16, 12)


def image(file: Path, voxels: np.ndarray | None = None, spacing: float = 2.0) -> None:
    """Write an image with SimpleITK, which is independent of the project's writer and reader."""
    file.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    picture = sitk.GetImageFromArray(random.integers(0, 99, SHAPE[::-1], np.int16) if voxels is None else voxels.T)
    picture.SetSpacing((1.0, 1.5, spacing))
    picture.SetOrigin((-7.0, 9.0, 40.0))
    sitk.WriteImage(picture, str(file))


def mask(*values: int) -> np.ndarray:
    voxels = np.zeros(SHAPE, np.uint8)
    for value in values:
        voxels[value : value + 3, 4:9, 2 + value % 5] = value
    return voxels


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BAPS_ADAPTERS", str(tmp_path / "adapters"))
    for name in ("a", "b", "c_0000", "d"):
        image(tmp_path / "studies" / f"{name}.nii.gz")
    return tmp_path / "studies"


def run(folder: Path, studies: Path, *words: str) -> tuple[int, str]:
    command = ["labels", "import", str(folder), str(studies), "--labels", "spleen=1,liver=2", *words]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    return result.exit_code, result.output


def served(studies: Path, name: str, tag: str = "final") -> np.ndarray:
    file, _ = LabelHistory(studies).served(name, tag)
    return np.asarray(nibabel.load(file).dataobj)


def test_labels_of_other_programs_are_saved_with_a_version(studies: Path, audit: Path) -> None:
    folder = studies / "labels"
    image(folder / "a.nii.gz", mask(1, 2))
    image(folder / "b-label.nii.gz", mask(2))
    image(folder / "c.nii.gz", mask(1))
    before = {path.name: path.read_bytes() for path in folder.glob("*.nii.gz")}
    code, output = run(folder, studies, "--author", "anna")
    assert (code, "3 of 3 labels were imported." in output) == (0, True)
    np.testing.assert_array_equal(served(studies, "a"), mask(1, 2))
    np.testing.assert_array_equal(served(studies, "c_0000"), mask(1))
    (version,) = LabelHistory(studies).versions("b", "final")
    assert (version.info["authors"], version.info["confirmed"]) == ({"liver": "anna"}, True)
    assert version.info["annotated_slices"]["liver"] == [4]
    assert {path.name: path.read_bytes() for path in folder.glob("*.nii.gz")} == before
    lines = audit.read_text().splitlines()
    assert sum("import a label" in line for line in lines) == 3


def test_segments_of_3d_slicer_keep_their_names(studies: Path, tmp_path: Path) -> None:
    header = {
        "space": "left-posterior-superior",
        "space directions": np.diag([1.0, 1.5, 2.0]),
        "space origin": [-7.0, 9.0, 40.0],
        "Segment0_Name": "liver",
        "Segment0_LabelValue": "1",
        "Segment0_Layer": "0",
    }
    (tmp_path / "theirs").mkdir()
    nrrd.write(str(tmp_path / "theirs" / "a.seg.nrrd"), mask(1), header)
    code, output = run(tmp_path / "theirs", studies)
    assert (code, "imported: a.seg.nrrd as the label of a, liver" in output) == (0, True)
    (version,) = LabelHistory(studies).versions("a", "final")
    assert [(one["name"], one["idx"]) for one in version.info["label_info"]] == [("liver", 1)]


def test_unusable_labels_are_rejected_and_the_others_imported(studies: Path, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    image(folder / "a.nii.gz", mask(1), spacing=3.0)
    image(folder / "b.nii.gz", np.zeros(SHAPE, np.uint8))
    image(folder / "c.nii.gz", mask(9))
    image(folder / "x.nii.gz", mask(1))
    image(folder / "d_mask.nii.gz", mask(1))
    code, output = run(folder, studies)
    assert (code, "1 of 5 labels were imported." in output) == (1, True)
    for sentence in (
        "rejected: a.nii.gz. The label a.nii.gz has shape (20, 16, 12) and does not have the geometry of its image",
        "rejected: b.nii.gz. b.nii.gz is empty: no voxel is marked.",
        "rejected: c.nii.gz. c.nii.gz marks the values [9], and not all of them have a name; given labels: "
        "spleen=1, liver=2.",
        "rejected: x.nii.gz. There is no image of this name.",
        "imported: d_mask.nii.gz as the label of d, spleen",
    ):
        assert sentence in output
    assert LabelHistory(studies).labels() == [("d", "final")]


def test_labels_are_replaced_only_with_the_option(studies: Path, tmp_path: Path) -> None:
    image(tmp_path / "one" / "a.nii.gz", mask(1))
    image(tmp_path / "two" / "a.nii.gz", mask(2))
    assert run(tmp_path / "one", studies)[0] == 0
    code, output = run(tmp_path / "two", studies)
    assert (code, "a has a label final already" in output) == (1, True)
    np.testing.assert_array_equal(served(studies, "a"), mask(1))
    assert run(tmp_path / "two", studies, "--replace")[0] == 0
    assert len(LabelHistory(studies).versions("a", "final")) == 2
    assert 2 in served(studies, "a")


def test_a_dry_run_saves_nothing(studies: Path, tmp_path: Path, audit: Path) -> None:
    image(tmp_path / "one" / "a.nii.gz", mask(1))
    image(tmp_path / "one" / "b.nii.gz", mask(9))
    code, output = run(tmp_path / "one", studies, "--dry-run")
    assert (code, "1 of 2 labels can be imported; nothing was saved." in output) == (1, True)
    assert LabelHistory(studies).labels() == []
    assert not list((studies / "labels" / "final").iterdir())
    assert not audit.exists()


def test_unconfirmed_labels(studies: Path, tmp_path: Path) -> None:
    image(tmp_path / "one" / "a.nii.gz", mask(1))
    assert run(tmp_path / "one", studies, "--no-confirmed")[0] == 0
    assert LabelHistory(studies).labels() == [("a", "original")]


def test_unknown_values_are_rejected(studies: Path, tmp_path: Path) -> None:
    image(tmp_path / "one" / "a.nii.gz", mask(1))
    command = ["labels", "import", str(tmp_path / "one"), str(studies)]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 1
    assert "given labels: none. Name the values" in result.output
    white = mask(1) * 255
    image(tmp_path / "white" / "a.nii.gz", white)
    command = ["labels", "import", str(tmp_path / "white"), str(studies), "--labels", "lesion"]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    (version,) = LabelHistory(studies).versions("a", "final")
    assert version.info["annotated_slices"] == {"lesion": [3]}


def test_a_dicom_seg_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAPS_ADAPTERS", str(tmp_path / "adapters"))
    from tests.support.small_series import write_small_series

    series = tmp_path / "studies" / "p1"
    write_small_series(series)
    slices = [pydicom.dcmread(file) for file in sorted(series.iterdir())]
    slices.sort(key=lambda one: float(one.ImagePositionPatient[2]))
    marked = np.zeros((len(slices), slices[0].Rows, slices[0].Columns), np.uint8)
    marked[1, 1:3, 1:4] = 1
    code = highdicom.sr.CodedConcept("78961009", "SCT", "Spleen")
    kind = highdicom.sr.CodedConcept("123037004", "SCT", "Anatomical Structure")
    described = highdicom.seg.SegmentDescription(1, "spleen", kind, code, "MANUAL")
    made = highdicom.seg.Segmentation(
        slices, marked, "BINARY", [described], highdicom.UID(), 9, highdicom.UID(), 1, "m", "m", "1", "1"
    )
    (tmp_path / "theirs" / "p1").mkdir(parents=True)
    made.save_as(tmp_path / "theirs" / "p1" / "object")  # As a PACS exports it, without a suffix.
    code_, output = run(tmp_path / "theirs", tmp_path / "studies")
    assert (code_, "as the label of p1, spleen" in output) == (0, True), output
    file, info = LabelHistory(tmp_path / "studies").served("p1", "final")
    assert pydicom.dcmread(file).SOPInstanceUID == made.SOPInstanceUID
    assert list(info["annotated_slices"]) == ["spleen"]


@pytest.mark.parametrize("what", ["labels", "studies"])
def test_missing_folders(studies: Path, tmp_path: Path, what: str) -> None:
    places = {"labels": studies, "studies": studies, what: tmp_path / "absent"}
    with pytest.raises(InputError, match="There is no folder .*absent"):
        run(places["labels"], places["studies"])


def test_a_running_server_lists_imported_labels(studies: Path, tmp_path: Path) -> None:
    """The server reads its index again."""
    from baps.server.datastores.folder import StudiesDatastore

    running = StudiesDatastore(str(studies), auto_reload=True, read_only=False)
    image(tmp_path / "one" / "a.nii.gz", mask(1))
    run(tmp_path / "one", studies)
    assert running.get_labeled_images() == ["a"]
    assert json.loads((studies / "datastore_v2.json").read_text())["objects"]["a"]["labels"]
