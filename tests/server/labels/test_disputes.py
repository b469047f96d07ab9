"""An annotator who takes away another's organ: told so, marked, and counted for nothing until a trainer confirms."""

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
from demo.server import ROOT

LABELS = {"liver": 1, "spleen": 2, "kidney": 3}
SHAPE = (24, 24, 10)


def _block(i: int, k: int = 3, size: int = 8, depth: int = 4) -> NDArray[np.bool_]:
    mask = np.zeros(SHAPE, bool)
    mask[i : i + size, 4 : 4 + size, k : k + depth] = True
    return mask


@dataclass
class Place:
    """A folder of one image."""

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
        said = {"label_info": [{"name": name, "idx": idx} for name, idx in LABELS.items()], "author": author}
        said |= {"slices": slices} if slices else {}
        return list(save_label(self.store, LABELS, "a", file, "final", said, confirms=confirms))

    def trained(self, organ: str = "liver") -> NDArray[np.bool_] | None:
        """What trainings take; nothing is marked where it was not looked for."""
        cases, _ = labelled_cases(self.store, LABELS, {})
        if not cases[organ]:
            return None
        (case,) = cases[organ]
        found = read_label_map(case.labels, Volume(np.zeros(SHAPE, np.int16), np.eye(4))).mask(case.value)
        for k in range(SHAPE[2]) if case.annotated_slices is not None else ():
            found[:, :, k] &= k in (case.annotated_slices or ())
        return found

    @property
    def disputed(self) -> dict[str, dict[str, str]]:
        info = LabelHistory(self.studies).versions("a", "final")[-1].info
        found: dict[str, dict[str, str]] = info.get("disputed", {})
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "studies").mkdir()
    write_nifti(tmp_path / "studies" / "a.nii.gz", Volume(np.zeros(SHAPE, np.int16), np.eye(4)))
    found = Place(tmp_path / "studies")
    found.save("anna", liver=_block(0))
    return found


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
def test_trainings_use_the_version_before_an_organ_was_taken_away(place: Place, attack: str) -> None:
    if attack == "not looked at where it is":
        place.save("ben", slices=[9], liver=_block(0) & (np.indices(SHAPE)[0] > 0))
    else:
        told = place.save("ben", **ATTACKS[attack])
        assert any("This takes liver away from the version of anna" in note for note in told)
        assert place.disputed["liver"]["author"] == "anna"
    np.testing.assert_array_equal(place.trained(), _block(0))


@pytest.mark.parametrize("attack", ["erased by slices", "painted over", "elsewhere"])
def test_a_change_by_a_trainer_is_used_at_once(place: Place, attack: str) -> None:
    place.save("tess", confirms=True, **ATTACKS[attack])
    assert place.disputed == {}
    found = place.trained()
    assert found is None or not (found & _block(0)).any()


def test_an_ordinary_correction_is_used(place: Place) -> None:
    better = _block(1)
    assert place.save("ben", liver=better) == ["liver by anna was replaced; the earlier version is kept on the server."]
    assert place.disputed == {}
    np.testing.assert_array_equal(place.trained(), better)


def test_slices_that_were_not_annotated_before_are_added(place: Place) -> None:
    more = _block(0, k=0, depth=10)
    place.save("ben", liver=more)
    assert place.disputed == {}
    np.testing.assert_array_equal(place.trained(), more)


@pytest.mark.parametrize("annotators", [["ben"], ["ben", "carl"]])
@pytest.mark.parametrize("way", ["drawn smaller", "painted over"])
def test_small_steps_add_up(place: Place, annotators: list[str], way: str) -> None:
    for step, size in enumerate((7, 6, 5, 4, 3, 2, 1)):
        left = _block(0, size=size)
        masks = {"liver": left} if way == "drawn smaller" else {"spleen": _block(0) & ~left}
        place.save(annotators[step % len(annotators)], **masks)
        found = place.trained()
        assert found is not None
        assert 2 * (found & _block(0)).sum() >= 0.5 * (found.sum() + _block(0).sum())
    assert place.disputed["liver"]


@pytest.mark.parametrize("attack", ["erased by slices", "elsewhere", "painted over"])
def test_submitting_an_organ_unchanged_keeps_its_author(place: Place, attack: str) -> None:
    place.save("ben", liver=_block(0))
    info = LabelHistory(place.studies).versions("a", "final")[-1].info
    assert info["authors"] == {"liver": "anna"}
    assert any(
        "This takes liver away from the version of anna" in note for note in place.save("ben", **ATTACKS[attack])
    )
    np.testing.assert_array_equal(place.trained(), _block(0))


def test_only_the_author_or_a_trainer_resolves_a_dispute(place: Place) -> None:
    place.save("ben", liver=_block(15))
    told = place.save("anna", spleen=_block(7, size=3))
    assert "liver is still disputed: trainings use the version of anna." in told
    np.testing.assert_array_equal(place.trained(), _block(0))
    place.save("ben", liver=_block(15))  # Once more does not make it right.
    np.testing.assert_array_equal(place.trained(), _block(0))
    place.save("anna", liver=_block(1))
    assert place.disputed == {}
    np.testing.assert_array_equal(place.trained(), _block(1))


def test_a_trainer_confirms_by_saving_the_label_unchanged(place: Place) -> None:
    place.save("ben", slices=list(range(10)), spleen=_block(14))
    told = place.save("tess", confirms=True, kidney=_block(20, size=3))
    assert "liver is still disputed: trainings use the version of anna." in told  # They may not have looked at it.
    told = place.save("tess", confirms=True, spleen=_block(14), kidney=_block(20, size=3))
    assert "liver is confirmed by this save: trainings use it." in told
    assert place.disputed == {}
    found = place.trained()
    assert found is not None
    assert not found.any()


def test_the_command_line_confirms(place: Place) -> None:
    place.save("ben", liver=_block(15), spleen=_block(0))

    def baps(*words: str) -> str:
        program = "from baps.cli import main; main()"
        command = [sys.executable, "-c", program, "labels", *words]
        given = {"cwd": ROOT / "apps" / "baps_app", "env": {**os.environ, "COLUMNS": "300"}}
        done = subprocess.run(command, capture_output=True, text=True, check=False, **given)
        return done.stdout + done.stderr

    assert "liver is disputed: trainings use the version by anna" in baps("list", str(place.studies))
    assert "is not disputed there" in baps("confirm", str(place.studies), "a", "--organ", "spleen")
    audit = place.studies.parent / "adapters"
    assert "Trainings now use liver of the label" in baps("confirm", str(place.studies), "a", "--adapters", str(audit))
    (line,) = map(json.loads, (audit / "audit.jsonl").read_text().splitlines())
    assert (line["what"], line["organs"]) == ("confirm a label", ["liver"])
    assert line["image"]
    assert place.disputed == {}
    np.testing.assert_array_equal(place.trained(), _block(15))
    with pytest.raises(InputError, match="Nothing of it is"):
        LabelHistory(place.studies).confirm("a", "final")
    with pytest.raises(NotFoundError):
        LabelHistory(place.studies).confirm("b", "final")


def test_masks_of_a_model_are_checked_for_disputes(place: Place) -> None:
    image = Volume(np.zeros(SHAPE, np.int16), np.eye(4))
    told = [save_mask(place.store, LABELS, "a", image, "liver", _block(15), [k], "baps", "ben") for k in (3, 4, 5, 6)]
    assert "This takes liver away from the version of anna" in told[-1]
    assert place.disputed["liver"]["author"] == "anna"
    np.testing.assert_array_equal(place.trained(), _block(0))
    said = save_mask(place.store, LABELS, "a", image, "liver", _block(15, depth=3), [6], "baps", "tess", confirms=True)
    assert said.startswith("Saved as liver. liver is confirmed")
    assert place.disputed == {}


def test_keys_of_clients_cannot_resolve_a_dispute(place: Place) -> None:
    file = place.studies.parent / "x.nii.gz"
    write_nifti(file, Volume((2 * _block(14)).astype(np.uint8), np.eye(4)))
    claims = {"confirms": True, "trusted": True, "confirmed_by": {"liver": "tess"}, "disputed": {}, "basis": {}}
    said = {"author": "ben", "slices": list(range(10)), "authors": {"liver": "ben"}, "restored": "x", "found": True}
    save_label(place.store, LABELS, "a", file, "final", {**claims, **said})
    info = LabelHistory(place.studies).versions("a", "final")[-1].info
    assert info["disputed"]["liver"]["author"] == "anna"
    assert not {"restored", "found", "confirmed_by"} & set(info)
    assert info["extra"] == {"confirms": True, "trusted": True}


def test_a_disputed_organ_is_skipped_if_its_earlier_version_was_removed(place: Place) -> None:
    place.save("ben", liver=_block(15))
    for version in LabelHistory(place.studies).versions("a", "final")[:-1]:
        version.file.unlink()
    cases, skipped = labelled_cases(place.store, LABELS, {})
    assert cases["liver"] == []
    assert "is not there any more; none was taken" in skipped["a, liver"]
    place.save("ben", liver=_block(15))
    assert "liver" in place.disputed


def test_concurrent_saves_lose_nothing(place: Place) -> None:
    """Each of them may be merged with what another one has just saved."""
    labels = {f"organ {n}": n for n in range(1, 9)}
    store = place.store

    def save(n: int) -> None:
        voxels = np.zeros(SHAPE, np.uint8)
        voxels[n, :, :] = n
        file = place.studies.parent / f"many-{n}.nii.gz"
        write_nifti(file, Volume(voxels, np.eye(4)))
        said = {"label_info": [{"name": f"organ {n}", "idx": n}], "author": f"author {n}"}
        save_label(store, labels, "a", file, "draft", said)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(save, range(1, 9)))
    versions = LabelHistory(place.studies).versions("a", "draft")
    assert len(versions) == 8
    newest = versions[-1]
    assert newest.info["authors"] == {f"organ {n}": f"author {n}" for n in range(1, 9)}
    values = {one["name"]: one["idx"] for one in newest.info["label_info"]}
    found = read_label_map(newest.file, Volume(np.zeros(SHAPE, np.int16), np.eye(4)))
    assert all(found.mask(values[f"organ {n}"])[n].all() for n in range(1, 9))
