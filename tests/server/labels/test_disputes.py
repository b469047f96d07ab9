"""A change that takes an organ away from another annotator is reported, and not used until a trainer confirms it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from baps.annotations.history import LabelHistory
from baps.errors import InputError, NotFoundError
from baps.imaging.volume import Volume
from baps.io import read_label_map, write_nifti
from baps.server.datastores.folder import StudiesDatastore
from baps.server.labels.save_labels import save_label, save_mask
from baps.server.training_cases import labelled_cases
from tests.support.paths import ROOT

LABELS = {"liver": 1, "spleen": 2, "kidney": 3}
SHAPE = (24, 24, 10)


def _block(i: int, k: int = 3, size: int = 8, depth: int = 4) -> NDArray[np.bool_]:
    mask = np.zeros(SHAPE, bool)
    mask[i : i + size, 4 : 4 + size, k : k + depth] = True
    return mask


@dataclass
class Study:
    """A folder with one image."""

    studies: Path
    count: int = 0

    @property
    def store(self) -> StudiesDatastore:
        return StudiesDatastore(str(self.studies), False, False)

    def save(self, author: str, confirms: bool = False, slices: list[int] | None = None, **masks: object) -> list[str]:
        voxels = np.zeros(SHAPE, np.uint8)
        for organ, mask in masks.items():
            voxels[mask] = LABELS[organ]
        self.count += 1
        file = self.studies.parent / f"{self.count}.nii.gz"
        write_nifti(file, Volume(voxels, np.eye(4)))
        info = {"label_info": [{"name": name, "idx": idx} for name, idx in LABELS.items()], "author": author}
        info |= {"slices": slices} if slices else {}
        return list(save_label(self.store, LABELS, "a", file, "final", info, confirms=confirms))

    def trained(self, organ: str = "liver") -> NDArray[np.bool_] | None:
        """Return the mask that trainings use, empty on slices that were not annotated."""
        cases, _ = labelled_cases(self.store, LABELS, {})
        if not cases[organ]:
            return None
        (case,) = cases[organ]
        mask = read_label_map(case.labels, Volume(np.zeros(SHAPE, np.int16), np.eye(4))).mask(case.value)
        for k in range(SHAPE[2]) if case.annotated_slices is not None else ():
            mask[:, :, k] &= k in (case.annotated_slices or ())
        return mask

    @property
    def disputed(self) -> dict[str, dict[str, str]]:
        info = LabelHistory(self.studies).versions("a", "final")[-1].info
        disputes: dict[str, dict[str, str]] = info.get("disputed", {})
        return disputes


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "studies").mkdir()
    write_nifti(tmp_path / "studies" / "a.nii.gz", Volume(np.zeros(SHAPE, np.int16), np.eye(4)))
    image_folder = Study(tmp_path / "studies")
    image_folder.save("anna", liver=_block(0))
    return image_folder


ATTACKS = {
    "erased by slices": {"slices": list(range(10)), "spleen": _block(14)},
    "painted over": {"spleen": _block(0)},
    "renamed": {"kidney": _block(0)},
    "elsewhere": {"liver": _block(15)},
    "a voxel of it": {"liver": _block(0, size=1, depth=1)},
    "everywhere": {"liver": np.ones(SHAPE, bool)},
    "not looked at where it is": {"slices": [9], "liver": _block(0)},
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_trainings_use_the_version_before_an_organ_was_taken_away(study: Study, attack: str) -> None:
    if attack == "not looked at where it is":
        study.save("ben", slices=[9], liver=_block(0) & (np.indices(SHAPE)[0] > 0))
    else:
        notes = study.save("ben", **ATTACKS[attack])
        assert any("This takes liver away from the version of anna" in note for note in notes)
        assert study.disputed["liver"]["author"] == "anna"
    np.testing.assert_array_equal(study.trained(), _block(0))


@pytest.mark.parametrize("attack", ["erased by slices", "painted over", "elsewhere"])
def test_a_change_by_a_trainer_is_used_at_once(study: Study, attack: str) -> None:
    study.save("tess", confirms=True, **ATTACKS[attack])
    assert study.disputed == {}
    mask = study.trained()
    assert mask is None or not (mask & _block(0)).any()


def test_an_ordinary_correction_is_used(study: Study) -> None:
    better = _block(1)
    assert study.save("ben", liver=better) == ["liver by anna was replaced; the earlier version is kept on the server."]
    assert study.disputed == {}
    np.testing.assert_array_equal(study.trained(), better)


def test_slices_that_were_not_annotated_before_are_added(study: Study) -> None:
    more = _block(0, k=0, depth=10)
    study.save("ben", liver=more)
    assert study.disputed == {}
    np.testing.assert_array_equal(study.trained(), more)


@pytest.mark.parametrize("annotators", [["ben"], ["ben", "carl"]])
@pytest.mark.parametrize("method", ["drawn smaller", "painted over"])
def test_small_steps_add_up(study: Study, annotators: list[str], method: str) -> None:
    for step, size in enumerate((7, 6, 5, 4, 3, 2, 1)):
        remaining = _block(0, size=size)
        masks = {"liver": remaining} if method == "drawn smaller" else {"spleen": _block(0) & ~remaining}
        study.save(annotators[step % len(annotators)], **masks)
        mask = study.trained()
        assert mask is not None
        assert 2 * (mask & _block(0)).sum() >= 0.5 * (mask.sum() + _block(0).sum())
    assert study.disputed["liver"]


@pytest.mark.parametrize("attack", ["erased by slices", "elsewhere", "painted over"])
def test_submitting_an_organ_unchanged_keeps_its_author(study: Study, attack: str) -> None:
    study.save("ben", liver=_block(0))
    info = LabelHistory(study.studies).versions("a", "final")[-1].info
    assert info["authors"] == {"liver": "anna"}
    assert any(
        "This takes liver away from the version of anna" in note for note in study.save("ben", **ATTACKS[attack])
    )
    np.testing.assert_array_equal(study.trained(), _block(0))


def test_only_the_author_or_a_trainer_resolves_a_dispute(study: Study) -> None:
    study.save("ben", liver=_block(15))
    notes = study.save("anna", spleen=_block(7, size=3))
    assert "liver is still disputed: trainings use the version of anna." in notes
    np.testing.assert_array_equal(study.trained(), _block(0))
    study.save("ben", liver=_block(15))  # Saving it again does not resolve the dispute.
    np.testing.assert_array_equal(study.trained(), _block(0))
    study.save("anna", liver=_block(1))
    assert study.disputed == {}
    np.testing.assert_array_equal(study.trained(), _block(1))


def test_a_trainer_confirms_by_saving_the_label_unchanged(study: Study) -> None:
    study.save("ben", slices=list(range(10)), spleen=_block(14))
    notes = study.save("tess", confirms=True, kidney=_block(20, size=3))
    assert (
        "liver is still disputed: trainings use the version of anna." in notes
    )  # The trainer may not have checked it.
    notes = study.save("tess", confirms=True, spleen=_block(14), kidney=_block(20, size=3))
    assert "liver is confirmed by this save: trainings use it." in notes
    assert study.disputed == {}
    mask = study.trained()
    assert mask is not None
    assert not mask.any()


def test_the_command_line_confirms(study: Study) -> None:
    study.save("ben", liver=_block(15), spleen=_block(0))

    def baps(*words: str) -> str:
        program = "from baps.cli import main; main()"
        command = [sys.executable, "-c", program, "labels", *words]
        options = {"cwd": ROOT / "apps" / "baps_app", "env": {**os.environ, "COLUMNS": "300"}}
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
        return done.stdout + done.stderr

    assert "liver is disputed: trainings use the version by anna" in baps("list", str(study.studies))
    assert "is not disputed there" in baps("confirm", str(study.studies), "a", "--organ", "spleen")
    audit = study.studies.parent / "adapters"
    assert "Trainings now use liver of the label" in baps("confirm", str(study.studies), "a", "--adapters", str(audit))
    (line,) = map(json.loads, (audit / "audit.jsonl").read_text().splitlines())
    assert (line["what"], line["organs"]) == ("confirm a label", ["liver"])
    assert line["image"]
    assert study.disputed == {}
    np.testing.assert_array_equal(study.trained(), _block(15))
    with pytest.raises(InputError, match="Nothing of it is"):
        LabelHistory(study.studies).confirm("a", "final")
    with pytest.raises(NotFoundError):
        LabelHistory(study.studies).confirm("b", "final")


def test_masks_of_a_model_are_checked_for_disputes(study: Study) -> None:
    image = Volume(np.zeros(SHAPE, np.int16), np.eye(4))
    notes = [save_mask(study.store, LABELS, "a", image, "liver", _block(15), [k], "baps", "ben") for k in (3, 4, 5, 6)]
    assert "This takes liver away from the version of anna" in notes[-1]
    assert study.disputed["liver"]["author"] == "anna"
    np.testing.assert_array_equal(study.trained(), _block(0))
    info = save_mask(study.store, LABELS, "a", image, "liver", _block(15, depth=3), [6], "baps", "tess", confirms=True)
    assert info.startswith("Saved as liver. liver is confirmed")
    assert study.disputed == {}


def test_keys_of_clients_cannot_resolve_a_dispute(study: Study) -> None:
    file = study.studies.parent / "x.nii.gz"
    write_nifti(file, Volume((2 * _block(14)).astype(np.uint8), np.eye(4)))
    claims = {"confirms": True, "trusted": True, "confirmed_by": {"liver": "tess"}, "disputed": {}, "basis": {}}
    sent = {"author": "ben", "slices": list(range(10)), "authors": {"liver": "ben"}, "restored": "x", "found": True}
    save_label(study.store, LABELS, "a", file, "final", {**claims, **sent})
    info = LabelHistory(study.studies).versions("a", "final")[-1].info
    assert info["disputed"]["liver"]["author"] == "anna"
    assert not {"restored", "found", "confirmed_by"} & set(info)
    assert info["extra"] == {"confirms": True, "trusted": True}


def test_a_disputed_organ_is_skipped_if_its_earlier_version_was_removed(study: Study) -> None:
    study.save("ben", liver=_block(15))
    for version in LabelHistory(study.studies).versions("a", "final")[:-1]:
        version.file.unlink()
    cases, skipped = labelled_cases(study.store, LABELS, {})
    assert cases["liver"] == []
    assert "does not exist any more, so the organ is skipped" in skipped["a, liver"]
    study.save("ben", liver=_block(15))
    assert "liver" in study.disputed


def test_concurrent_saves_lose_nothing(study: Study) -> None:
    """Each label may be merged with one that was just saved."""
    labels = {f"organ {n}": n for n in range(1, 9)}
    store = study.store

    def save(n: int) -> None:
        voxels = np.zeros(SHAPE, np.uint8)
        voxels[n, :, :] = n
        file = study.studies.parent / f"many-{n}.nii.gz"
        write_nifti(file, Volume(voxels, np.eye(4)))
        info = {"label_info": [{"name": f"organ {n}", "idx": n}], "author": f"author {n}"}
        save_label(store, labels, "a", file, "draft", info)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(save, range(1, 9)))
    versions = LabelHistory(study.studies).versions("a", "draft")
    assert len(versions) == 8
    newest = versions[-1]
    assert newest.info["authors"] == {f"organ {n}": f"author {n}" for n in range(1, 9)}
    values = {one["name"]: one["idx"] for one in newest.info["label_info"]}
    label_map = read_label_map(newest.file, Volume(np.zeros(SHAPE, np.int16), np.eye(4)))
    assert all(label_map.mask(values[f"organ {n}"])[n].all() for n in range(1, 9))
