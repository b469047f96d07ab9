"""The infer task of the organ model, without a server and with an organ model whose answer is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest
from numpy.typing import NDArray

from baps.errors import BapsError, InputError, NotFoundError
from baps.evaluation.cases import Case
from baps.fseft.predictor import OrganMasks
from baps.imaging.volume import Volume
from baps.io import write_nifti
from baps.server.infer.organs import OrgansInfer
from baps.server.jobs import LongRequests

LABELS = {"ball": 5, "shell": 2, "nowhere": 1, "heart": 4}
"""The organ model knows all but the heart, and finds all but one of them."""

KNOWN = {"ball": "v0003", "shell": "", "nowhere": ""}

EXPECTED = {"ball": 0.8, "shell": 0.6}
"""Nobody has measured how well the last one is found."""


class Organs:
    """Finds the ball, and what lies beside it along K."""

    def __init__(self, ball: NDArray[np.bool_], jobs: LongRequests) -> None:
        self.ball, self.jobs = ball, jobs

    def served(self, organ: str) -> str | None:
        return KNOWN.get(organ)

    def expected_dice(self, organ: str) -> float | None:
        return EXPECTED.get(organ)

    def segment(
        self,
        volume: Volume,
        labels: Mapping[str, int],
        go_on: Callable[[], bool],
        report: Callable[[int, int], None],
    ) -> OrganMasks:
        self.labels = dict(labels)
        beside = np.roll(self.ball, 2, axis=2) & ~self.ball
        labelmap = np.where(self.ball, labels.get("ball", 0), 0).astype(np.uint8)
        report(1, 3)
        (self.listed,) = self.jobs.to_dicts()
        if not go_on():
            return OrganMasks(labelmap, {"ball": "v0003"}, ("heart",), ("shell", "nowhere"))
        labelmap[beside] = labels.get("shell", 0)
        served = {organ: version for organ, version in KNOWN.items() if organ in labels}
        return OrganMasks(labelmap, served, tuple(organ for organ in labels if organ not in KNOWN), ())


class Site:
    """A ball, and the task that answers."""

    def __init__(self, folder: Path, volume: Volume, ball: NDArray[np.bool_]) -> None:
        self.volume, self.ball, self.jobs = volume, ball, LongRequests()
        self.image = folder / "image.nii.gz"
        write_nifti(self.image, volume)
        self.organs = Organs(ball, self.jobs)
        self.saved: list[tuple[Any, ...]] = []
        self.drawn: dict[str, Case | None] = {}
        self.loaded: Any = None
        self.task = OrgansInfer(self._load, folder / "clicks.lock", LABELS, self._save, self.jobs, self._find_drawn)

    def _load(self) -> Any:
        return self.organs

    def _find_drawn(self, image: str) -> dict[str, Case | None]:
        return self.drawn if image == "image" else {}

    def draw(self, organ: str, mask: NDArray[np.bool_]) -> Path:
        """Save a label as a person would."""
        file = self.image.with_name(f"{organ}_label.nii.gz")
        write_nifti(file, Volume(mask.astype(np.uint8) * 3, self.volume.affine))
        self.drawn[organ] = Case(self.image, file, 3, "a")
        return file

    def _save(self, *given: Any) -> str:
        self.saved.append(given)
        return "Saved."

    def offer_from(self, min_dice: float) -> None:
        """Offer only organs of this expected Dice or more."""
        lock = self.image.with_name("clicks.lock")
        self.task = OrgansInfer(
            self._load, lock, LABELS, self._save, self.jobs, self._find_drawn, min_dice, lambda: self.loaded
        )

    def ask(self, **params: Any) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """The reply's labelmap and words."""
        file, content = self.task({"image": str(self.image), "image_id": "image", **params})
        voxels: NDArray[np.uint8] = nrrd.read(file)[0]
        return voxels, content


@pytest.fixture
def site(tmp_path: Path, new_phantom: Callable[..., tuple[Volume, NDArray[np.bool_]]]) -> Site:
    return Site(tmp_path, *new_phantom())


def test_the_reply_names_what_is_there_in_the_order_of_the_values(site: Site) -> None:
    voxels, reply = site.ask()
    np.testing.assert_array_equal(voxels == 5, site.ball)
    assert list(reply["label_names"].items()) == [("shell", 2), ("ball", 5)]
    assert reply["adapter"] == {"ball": "v0003", "shell": "unadapted", "nowhere": "unadapted"}
    unknown, missing = reply["notes"]
    assert "There is no model for heart:" in unknown
    assert missing == "Not found in this volume: nowhere."
    assert site.organs.listed["model"] == "organs"
    assert (site.organs.listed["done"], site.organs.listed["total"]) == (1, 3)
    assert site.jobs.to_dicts() == []
    assert site.saved == []


def test_the_reply_has_the_volume_of_each_organ(site: Site) -> None:
    _, reply = site.ask()
    beside = np.roll(site.ball, 2, axis=2) & ~site.ball
    i, j, k = np.linalg.norm(site.volume.affine[:3, :3], axis=0)
    expected = {"ball": site.ball.sum() * i * j * k / 1000, "shell": beside.sum() * i * j * k / 1000}
    assert reply["volumes_ml"] == pytest.approx(expected, abs=0.01)


def test_an_organ_that_a_person_drew_is_returned_as_it_was_drawn(site: Site) -> None:
    drawn = np.roll(site.ball, 1, axis=0)
    drawn[:, :, ::2] = False
    site.draw("ball", drawn)
    voxels, reply = site.ask(save_as="ball")
    np.testing.assert_array_equal(voxels == 5, drawn)
    assert site.organs.labels == {"shell": 2, "nowhere": 1, "heart": 4}  # Not segmented, so nothing is lost to it.
    assert reply["left_as_drawn"] == ["ball"]
    assert reply["adapter"] == {"shell": "unadapted", "nowhere": "unadapted"}
    assert "Left as drawn, because a person saved it: ball." in reply["notes"]
    assert reply["notes"][-1] == "It was not saved as ball, because a person saved that organ of this image before."
    assert site.saved == []
    voxels, reply = site.ask(image_id="another")
    np.testing.assert_array_equal(voxels == 5, site.ball)
    assert reply["left_as_drawn"] == []


def test_drawn_organs_are_returned_where_nothing_else_is_known(site: Site) -> None:
    """The heart is unknown to the model, which is not a fault of this image any more."""
    site.draw("ball", site.ball)
    for organ in ("shell", "nowhere"):
        mask = np.zeros_like(site.ball)
        mask[0, 0, len(organ) :] = True
        site.draw(organ, mask)
    voxels, reply = site.ask()
    assert reply["label_names"] == {"nowhere": 1, "shell": 2, "ball": 5}
    assert set(np.unique(voxels)) == {0, 1, 2, 5}
    assert reply["adapter"] == {}
    assert any("There is no model for heart" in note for note in reply["notes"])


def test_drawn_organs_that_overlap_are_told(site: Site) -> None:
    site.draw("ball", site.ball)
    site.draw("shell", np.roll(site.ball, 1, axis=2))
    voxels, reply = site.ask()
    np.testing.assert_array_equal(voxels == 2, np.roll(site.ball, 1, axis=2))
    assert "Drawn organs overlap, and the reply has one label per voxel: it lacks a part of ball." in reply["notes"]


def test_an_organ_whose_label_cannot_be_read_is_left_out(site: Site) -> None:
    site.draw("ball", site.ball).write_bytes(b"broken")
    voxels, reply = site.ask()
    assert not (voxels == 5).any()
    assert "Left out, because the saved label cannot be read: ball." in reply["notes"]
    site.drawn["shell"] = None  # The PACS does not send it.
    voxels, reply = site.ask()
    assert not voxels.any()
    assert "Left out, because the saved label cannot be read: ball, shell." in reply["notes"]
    assert reply["left_as_drawn"] == []


def test_organs_below_the_threshold_are_left_out(site: Site) -> None:
    site.offer_from(0.7)
    voxels, reply = site.ask(save_as="shell")
    assert set(np.unique(voxels)) == {0, 5}
    assert site.organs.labels == {"ball": 5, "heart": 4}
    assert reply["not_offered"] == ["shell", "nowhere"]
    assert reply["expected_dice"] == {"ball": 0.8, "shell": 0.6, "nowhere": None}
    (note,) = [note for note in reply["notes"] if "organ_min_dice" in note]
    assert "below 0.70" in note
    assert "shell (0.60), nowhere (not measured)" in note
    assert reply["notes"][-1] == "It was not saved as shell, because there is no mask of it."
    site.offer_from(0.8)
    assert set(site.ask()[1]["label_names"]) == {"ball"}
    site.draw("shell", site.ball)
    _, reply = site.ask()
    assert reply["not_offered"] == ["nowhere"]  # What a person drew is no answer of the model.


def test_nothing_is_segmented_where_nothing_is_offered(site: Site) -> None:
    site.offer_from(0.9)
    voxels, reply = site.ask()
    assert not voxels.any()
    assert reply["not_offered"] == ["ball", "shell", "nowhere"]
    assert not hasattr(site.organs, "labels")


def test_the_info_says_what_is_offered_once_the_model_is_loaded(site: Site) -> None:
    site.offer_from(0.7)
    info = site.task.info()
    assert (info["min_dice"], info["expected_dice"], info["not_offered"]) == (0.7, None, None)
    site.loaded = site.organs
    info = site.task.info()
    assert info["expected_dice"] == {"ball": 0.8, "shell": 0.6, "nowhere": None}
    assert info["not_offered"] == ["shell", "nowhere"]
    assert info["labels"] == LABELS


def test_an_organ_is_saved_on_all_slices(site: Site) -> None:
    _, reply = site.ask(save_as="ball", client_id="Dr. Who")
    assert reply["notes"][-1] == "Saved."
    ((image_id, volume, organ, mask, slices, author, confirms),) = site.saved
    assert (image_id, organ, author, list(slices)) == ("image", "ball", "Dr. Who", list(range(volume.shape[2])))
    np.testing.assert_array_equal(mask, site.ball)
    assert not confirms


def test_an_organ_without_a_model_is_not_saved(site: Site) -> None:
    with pytest.raises(InputError, match="does not know heart.*train `organs`"):
        site.ask(save_as="heart")
    assert site.saved == []


def test_a_cancelled_request_returns_the_mask_so_far(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baps.server.jobs.Job.cancelled", True)
    voxels, reply = site.ask(save_as="shell")
    assert reply["label_names"] == {"ball": 5}
    assert set(np.unique(voxels)) == {0, 5}
    assert "It was cancelled: shell, nowhere were not segmented." in reply["notes"]
    assert reply["notes"][-1] == "It was not saved as shell, because it was cancelled."
    _, reply = site.ask(save_as="ball")  # An organ that was not looked for may have claimed its voxels.
    assert reply["notes"][-1] == "It was not saved as ball, because it was cancelled."
    assert site.saved == []


def test_raw_voxels_for_ohif(site: Site) -> None:
    file, _ = site.task({"image": str(site.image), "result_compress": False})
    header, _, data = Path(file).read_bytes().partition(b"\n\n")
    assert b"encoding: raw" in header
    result = np.frombuffer(data, np.uint8).reshape(site.volume.shape, order="F")
    np.testing.assert_array_equal(result == 5, site.ball)


def test_no_image_and_no_model(site: Site) -> None:
    with pytest.raises(NotFoundError, match="no such image"):
        site.task({})

    def refuse() -> Any:
        raise BapsError("The organ model cannot be loaded.")

    task = OrgansInfer(refuse, site.image.parent / "lock", LABELS, site._save, site.jobs, site._find_drawn)
    with pytest.raises(BapsError, match="cannot be loaded"):
        task({"image": str(site.image)})
