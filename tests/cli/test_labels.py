from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from baps.annotations.history import LabelHistory
from baps.cli import app
from baps.errors import InputError, NotFoundError
from baps.imaging.volume import Volume
from baps.io import read_label_map, read_volume, write_nifti
from tests.support.small_series import SHAPE, random_segments, write_small_series


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with an image, which has two versions of its label and a draft, and a series."""
    monkeypatch.setenv("COLUMNS", "200")
    images = {"ct_01": ".nii.gz", "p1": ""}
    listed = {"objects": {name: {"image": {"ext": ext}, "labels": {}} for name, ext in images.items()}}
    (tmp_path / "datastore_v2.json").write_text(json.dumps(listed))
    write_nifti(tmp_path / "ct_01.nii.gz", Volume(np.zeros(SHAPE, np.int16), np.eye(4)))
    write_small_series(tmp_path / "p1")
    for number, tag in enumerate(("final", "final", "draft")):
        file = tmp_path.parent / "new.nii.gz"
        write_nifti(file, Volume(np.full(SHAPE, number + 1, np.uint8), np.eye(4)))
        info = {"author": "ben", "authors": {"liver": "anna", "spleen": "ben"}, "annotated_slices": {"liver": [3, 4]}}
        LabelHistory(tmp_path).save("ct_01", tag, file, ".nii.gz", {**info, "model": "sam" if number else ""})
    return tmp_path


def _run(*words: str) -> str:
    result = CliRunner().invoke(app, ["labels", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def _names(studies: Path, tag: str = "final") -> list[str]:
    return [version.name for version in LabelHistory(studies).versions("ct_01", tag)]


def test_list(studies: Path) -> None:
    rows = [[cell.strip() for cell in row.split("│")[1:-1]] for row in _run("list", str(studies)).splitlines()]
    first, second = _names(studies)
    assert [row for row in rows if row] == [
        ["ct_01", "draft", *_names(studies, "draft"), "yes", "ben, anna", "liver 2", "made by sam"],
        ["ct_01", "final", first, "", "ben, anna", "liver 2", ""],
        ["ct_01", "final", second, "yes", "ben, anna", "liver 2", "made by sam"],
    ]
    assert first not in _run("list", str(studies), "--image", "ct_02")


def test_a_damaged_version_is_listed_among_the_others(studies: Path) -> None:
    first, second = _names(studies)
    (studies / "labels-history" / "final" / "ct_01" / first / "version.json").write_text("{")
    rows = _run("list", str(studies)).splitlines()
    assert [("damaged" in row) for row in rows if first in row or second in row] == [True, False]


def test_a_version_can_be_copied_from_a_narrow_terminal(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert all(name in _run("list", str(studies)) for name in _names(studies))


def test_show(studies: Path) -> None:
    output = json.loads(_run("show", str(studies), "ct_01", _names(studies)[0]))
    assert (output["author"], read_volume(Path(output["file"])).voxels.max()) == ("ben", 1)


def test_restore(studies: Path, audit: Path) -> None:
    first, second = _names(studies)
    assert f"is {first} again" in _run("restore", str(studies), "ct_01", first)
    assert read_volume(studies / "labels" / "final" / "ct_01.nii.gz").voxels.max() == 1
    assert _names(studies)[:2] == [first, second]
    assert len(_names(studies)) == 3
    assert f"restored from {first}" in _run("list", str(studies))
    (line,) = [json.loads(line) for line in audit.read_text().splitlines()]
    assert (line["what"], line["by"], line["version"]) == ("restore a label", "command", first)


def test_an_unreadable_version_is_not_restored(studies: Path) -> None:
    write_nifti(studies / "ct_01.nii.gz", Volume(np.zeros((5, 5, 5), np.int16), np.eye(4)))
    with pytest.raises(InputError, match="does not have the geometry of its image.*The label was not restored"):
        _run("restore", str(studies), "ct_01", _names(studies)[0])
    assert read_volume(studies / "labels" / "final" / "ct_01.nii.gz").voxels.max() == 2
    assert len(_names(studies)) == 2


def test_export_as_rtstruct(studies: Path, tmp_path: Path) -> None:
    image, (mask, *_) = read_volume(studies / "p1"), random_segments(3)
    write_nifti(tmp_path / "new.nii.gz", Volume(mask.astype(np.uint8), image.affine))
    info = {"label_info": [{"name": "liver", "idx": 1}], "author": "anna"}
    LabelHistory(studies).save("p1", "final", tmp_path / "new.nii.gz", ".nii.gz", info)
    out = tmp_path / "rt.dcm"
    assert "The label final of p1 is in" in _run("export", str(studies), "p1", "--rtstruct", str(out))
    label_map = read_label_map(out, image, studies / "p1")
    assert label_map.names == {1: "liver"}
    np.testing.assert_array_equal(label_map.mask(1), mask)
    with pytest.raises(InputError, match="There is a file .*rt.dcm already"):
        _run("export", str(studies), "p1", "--rtstruct", str(out))
    with pytest.raises(InputError, match="The image ct_01 is no DICOM series"):
        _run("export", str(studies), "ct_01", "--rtstruct", str(tmp_path / "b.dcm"))
    with pytest.raises(NotFoundError, match="There is no label draft of p1"):
        _run("export", str(studies), "p1", "--rtstruct", str(tmp_path / "b.dcm"), "--tag", "draft")
    assert not (tmp_path / "b.dcm").exists()


def test_unknown_images_and_versions(studies: Path) -> None:
    with pytest.raises(NotFoundError, match="no version 20200101"):
        _run("restore", str(studies), "ct_01", "20200101T000000.000000Z")
    with pytest.raises(InputError, match="There is no folder http:/pacs"):
        _run("list", "http://pacs")


def test_prune(studies: Path, audit: Path) -> None:
    first, second = _names(studies)
    assert f"{first}" in _run("prune", str(studies), "--all", "--keep", "1", "--dry-run")
    assert "1 versions would be removed" in _run("prune", str(studies), "ct_01", "--keep", "1", "--dry-run")
    assert _names(studies) == [first, second]
    assert "0 versions were removed" in _run("prune", str(studies), "--all", "--older-than", "30")
    assert "1 versions were removed" in _run("prune", str(studies), "--all", "--keep", "1")
    assert _names(studies) == [second]
    assert f"{first} " in _run("list", str(studies))
    assert "removed: pruned" in _run("list", str(studies))
    (line,) = [json.loads(line) for line in audit.read_text().splitlines()]
    assert (line["what"], line["versions"], line["tag"]) == ("prune a label", [first], "final")
    assert "ct_01" not in audit.read_text()
    for words in (("--all",), ("--keep", "1"), ("ct_01", "--all", "--keep", "1")):
        with pytest.raises(InputError):
            _run("prune", str(studies), *words)


def test_remove(studies: Path, audit: Path) -> None:
    first, second = _names(studies)
    with pytest.raises(InputError, match="is the newest"):
        _run("remove", str(studies), "ct_01", second)
    history = LabelHistory(studies)
    history.mark_used([history.version("ct_01", "final", first).file])
    with pytest.raises(InputError, match="A training has used the version.*--although-used"):
        _run("remove", str(studies), "ct_01", first)
    assert first in _run("remove", str(studies), "ct_01", first, "--although-used")
    assert _names(studies) == [second]
    _run("remove", str(studies), "ct_01", "--all")
    assert not _names(studies)
    assert not list((studies / "labels" / "final").iterdir())
    with pytest.raises(NotFoundError):
        _run("remove", str(studies), "ct_01", first)
    assert [json.loads(line)["what"] for line in audit.read_text().splitlines()] == ["remove a label"] * 2


def test_confirm(studies: Path, audit: Path) -> None:
    history = LabelHistory(studies)
    newest = history.versions("ct_01", "final")[-1]
    info = {**newest.info, "disputed": {"liver": _names(studies)[0]}}
    history.save("ct_01", "final", newest.file, newest.suffix, info)
    assert "Trainings now use liver of the label" in _run("confirm", str(studies), "ct_01")
    (line,) = [json.loads(line) for line in audit.read_text().splitlines()]
    assert (line["what"], line["organs"], line["by"]) == ("confirm a label", ["liver"], "command")
