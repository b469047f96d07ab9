from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from baps.annotations.drafts import DraftStore
from baps.annotations.history import LabelHistory
from baps.cli import app
from baps.errors import InputError, NotFoundError
from baps.imaging.fingerprint import Fingerprint

SHAPE = (12, 10, 8)
MASK = np.zeros(SHAPE, bool)
MASK[3:6, 2:7, 1:4] = True


def voxels(seed: int = 0) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(-1000, 2000, SHAPE).astype(np.int16)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DraftStore:
    monkeypatch.setenv("BAPS_ADAPTERS", str(tmp_path / "adapters"))
    monkeypatch.setenv("COLUMNS", "200")
    return DraftStore(tmp_path / "adapters" / "drafts", 9, 1 << 20)


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    for seed, name in enumerate(("a", "b")):
        nibabel.save(nibabel.Nifti1Image(voxels(seed), np.diag([1.0, 2.0, 3.0, 1.0])), folder / f"{name}.nii.gz")
    return folder


def add(store: DraftStore, seed: int = 0, user: str = "anna") -> str:
    time.sleep(0.002)
    sent, mask = (array.transpose(2, 1, 0) for array in (voxels(seed), MASK))
    return store.add("spleen", user, Fingerprint.of(sent), mask, (3, 2, 1))[0]


def run(*words: str) -> str:
    result = CliRunner().invoke(app, ["drafts", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def label_of(studies: Path, image: str) -> NDArray[np.uint8]:
    file, _ = LabelHistory(studies).served(image, "final")
    return np.asarray(nibabel.load(file).dataobj)


def test_list(store: DraftStore, tmp_path: Path) -> None:
    first, second, broken = add(store), add(store, user="theo"), add(store)
    (tmp_path / "adapters" / "drafts" / f"{broken}.npz").write_bytes(b"")
    output = run("list")
    rows = [[cell.strip() for cell in row.split("│")[1:-1]] for row in output.splitlines() if "│" in row]
    assert [(row[0], *row[2:]) for row in rows] == [
        (second, "spleen", "theo", "45", "0.3"),
        (first, "spleen", "anna", "45", "0.3"),
    ]
    assert f"The draft {broken} is damaged" in output


def test_confirm(store: DraftStore, studies: Path, audit: Path) -> None:
    name = add(store, seed=1)
    assert "The draft belongs to b. Saved as spleen." in run("confirm", str(studies), name, "--labels", "spleen=3")
    assert np.array_equal(label_of(studies, "b") == 3, MASK)
    (version,) = LabelHistory(studies).versions("b", "final")
    assert (version.info["authors"], version.info["confirmed"]) == ({"spleen": "anna"}, True)
    assert version.info["annotated_slices"] == {"spleen": [1, 2, 3]}
    assert store.all() == []
    (line,) = [json.loads(line) for line in audit.read_text().splitlines()]
    assert (line["what"], line["by"], line["draft"], line["drawn_by"]) == ("confirm a draft", "command", name, "anna")
    with pytest.raises(NotFoundError, match="It was confirmed or deleted"):
        run("confirm", str(studies), name, "--labels", "spleen=3")


def test_a_draft_replaces_its_organ_and_nothing_else(store: DraftStore, studies: Path, tmp_path: Path) -> None:
    earlier = np.zeros(SHAPE, np.uint8)
    earlier[0, 0], earlier[8, 8] = 3, 5
    nibabel.save(nibabel.Nifti1Image(earlier, np.diag([1.0, 2.0, 3.0, 1.0])), tmp_path / "label.nii.gz")
    labels = ("--labels", "spleen=3,liver=5")
    folder = tmp_path / "labels"
    folder.mkdir()
    shutil.copy(tmp_path / "label.nii.gz", folder / "a.nii.gz")
    command = ["labels", "import", str(folder), str(studies), "--author", "otto", *labels]
    assert CliRunner().invoke(app, command).exit_code == 0
    run("confirm", str(studies), add(store), "--image", "a", *labels)
    label = label_of(studies, "a")
    assert np.array_equal(label == 3, MASK)
    assert np.array_equal(label == 5, earlier == 5)
    newest = LabelHistory(studies).versions("a", "final")[-1]
    assert newest.info["authors"] == {"spleen": "anna", "liver": "otto"}
    assert newest.info["annotated_slices"]["spleen"] == list(range(8))  # The spleen was on all before.


def test_a_complete_label_has_all_slices(store: DraftStore, studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAPS_COMPLETE_LABELS", "yes")
    run("confirm", str(studies), add(store), "--labels", "spleen")
    (version,) = LabelHistory(studies).versions("a", "final")
    assert version.info["annotated_slices"] == {"spleen": list(range(8))}


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        ("b", "The image b does not have the voxels"),
        ("c", "There is no image 'c'"),
        ("../a", "is not a valid name"),
        ("", "Several images have the voxels that this draft was drawn on: a, again"),
    ],
)
def test_an_image_that_is_not_certain_is_refused(store: DraftStore, studies: Path, image: str, sentence: str) -> None:
    shutil.copy(studies / "a.nii.gz", studies / "again.nii.gz")
    name = add(store)
    with pytest.raises(InputError, match=sentence):
        run("confirm", str(studies), name, "--labels", "spleen", *(["--image", image] if image else []))
    assert [draft.name for draft in store.all()] == [name]
    assert not list(studies.glob("labels/final/*"))


def test_the_label_must_be_one_of_the_site(store: DraftStore, studies: Path) -> None:
    with pytest.raises(InputError, match="There is no label 'spleen'"):
        run("confirm", str(studies), add(store))
    assert len(store.all()) == 1


def test_a_pacs_is_left_to_the_page(store: DraftStore) -> None:
    with pytest.raises(InputError, match="use the page of the server"):
        run("confirm", "http://pacs/dicom-web", add(store))


def test_delete(store: DraftStore, audit: Path) -> None:
    name, other = add(store), add(store)
    assert f"The draft {name} is deleted." in run("delete", name)
    assert [draft.name for draft in store.all()] == [other]
    (line,) = [json.loads(line) for line in audit.read_text().splitlines()]
    assert (line["what"], line["draft"]) == ("delete a draft", name)
    with pytest.raises(NotFoundError, match="There is no draft"):
        run("delete", "../users")
