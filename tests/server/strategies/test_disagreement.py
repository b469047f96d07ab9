"""The strategy with two methods whose masks are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from baps.blackbox import BlackBox
from baps.errors import BapsError
from baps.fseft.predictor import OrganMasks
from baps.imaging.volume import Volume
from baps.inference.segmenter import Segmenter
from baps.io import write_nifti
from baps.registry.store import AdapterStore
from baps.server.strategies.disagreement import Disagreement


class Organs:
    """An organ model that returns the ball, shifted by a number of voxels, or nothing for None."""

    def __init__(self, moved: Mapping[int, int | None], ball: NDArray[np.bool_]) -> None:
        self.moved, self.ball = moved, ball
        self.version, self.asked = "v0001", list[int]()

    def served(self, organ: str) -> str | None:
        return self.version if organ == "ball" else None

    def segment(self, volume: Volume, labels: Mapping[str, int]) -> OrganMasks:
        assert labels == {"ball": 3}
        number = int(volume.voxels[0, 0, 0])
        self.asked.append(number)
        moved = self.moved[number]
        mask = np.zeros_like(self.ball) if moved is None else np.roll(self.ball, moved, axis=0)
        return OrganMasks(np.where(mask, 3, 0).astype(np.uint8), {"ball": self.version}, (), ())


class Studies:
    """A datastore of images without labels."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.images = folder, list[str]()

    def get_unlabeled_images(self) -> list[str]:
        return self.images

    def get_image_uri(self, image: str) -> str:
        return str(self.folder / f"{image}.nii.gz")


class Ward:
    """Images named by numbers, and a black box that finds the bright ball on all of them."""

    def __init__(
        self,
        folder: Path,
        volume: Volume,
        ball: NDArray[np.bool_],
        black_box: BlackBox,
        moved: Mapping[int, int | None],
    ) -> None:
        self.studies, self.organs = Studies(folder), Organs(moved, ball)
        for number in moved:
            voxels = volume.voxels.copy()
            voxels[0, 0, 0] = number
            write_nifti(folder / f"{number}.nii.gz", Volume(voxels, volume.affine))
            self.studies.images.append(str(number))
        self.segmenter = Segmenter(black_box, AdapterStore(folder / "adapters"))
        self.folder = folder

    def strategy(self, seconds: float = 600) -> Disagreement:
        labels = {"ball": 3, "other": 4}
        lock_file = self.folder / "clicks.lock"
        return Disagreement(lambda: self.segmenter, lambda: self.organs, labels, lock_file, seconds)  # type: ignore[arg-type, return-value]

    def propose(self, strategy: Disagreement) -> dict[str, Any]:
        sample = strategy({"strategy": "disagreement"}, self.studies)
        assert sample is not None
        return sample


@pytest.fixture
def new_ward(
    tmp_path: Path,
    new_phantom: Callable[..., tuple[Volume, NDArray[np.bool_]]],
    new_black_box: Callable[..., BlackBox],
) -> Callable[..., Ward]:
    def make(moved: Mapping[int, int | None]) -> Ward:
        return Ward(tmp_path, *new_phantom(), new_black_box(side=40), moved)

    return make


def test_the_volume_with_the_largest_disagreement_is_selected(new_ward: Callable[..., Ward]) -> None:
    ward = new_ward({1: 0, 2: 6, 3: 3, 4: None})
    sample = ward.propose(ward.strategy())
    assert sample["id"] == "2"
    assert sample["disagreement"] > 0.3
    assert "of 3 volumes that were compared; 4 have no label" in sample["reason"]
    ward.studies.images = ["1"]
    assert ward.propose(ward.strategy())["disagreement"] < 0.1


def test_the_black_box_is_queried_on_few_slices(new_ward: Callable[..., Ward]) -> None:
    ward = new_ward({1: 0})
    ward.propose(ward.strategy())
    assert len(ward.segmenter.black_box.queries) == 5  # type: ignore[attr-defined]


def test_the_next_request_continues_with_further_volumes(new_ward: Callable[..., Ward]) -> None:
    ward = new_ward({1: 0, 2: 6, 3: 3})
    strategy = ward.strategy(seconds=0)  # One volume per request.
    for count in (1, 2, 3, 3):
        sample = ward.propose(strategy)
        assert len(ward.organs.asked) == count
    assert sample["id"] == "2"
    assert sorted(ward.organs.asked) == [1, 2, 3]

    ward.studies.images.remove("2")  # It has a label now.
    assert ward.propose(strategy)["id"] == "3"
    ward.organs.version = "v0002"
    ward.propose(strategy)
    assert len(ward.organs.asked) == 4


def test_the_order_is_the_same_after_a_restart(new_ward: Callable[..., Ward]) -> None:
    ward = new_ward(dict.fromkeys(range(6), 0))
    for _ in range(2):
        strategy = ward.strategy(seconds=0)
        for _ in range(6):
            ward.propose(strategy)
    assert ward.organs.asked[:6] == ward.organs.asked[6:]
    assert ward.organs.asked[:6] != sorted(ward.organs.asked[:6])


def test_a_broken_volume_is_skipped(new_ward: Callable[..., Ward]) -> None:
    ward = new_ward({1: 0, 2: 6})
    (ward.studies.folder / "1.nii.gz").write_bytes(b"junk")
    strategy = ward.strategy()
    for _ in range(2):
        assert ward.propose(strategy)["id"] == "2"
    assert ward.organs.asked == [2]


def test_a_volume_that_could_not_be_fetched_is_tried_again(
    new_ward: Callable[..., Ward], monkeypatch: pytest.MonkeyPatch
) -> None:
    ward = new_ward({1: 0, 2: 6})
    strategy, get_image_uri = ward.strategy(), ward.studies.get_image_uri

    def away(image: str) -> str:
        raise BapsError("The PACS cannot be reached.")

    monkeypatch.setattr(ward.studies, "get_image_uri", away)
    with pytest.raises(BapsError, match="cannot be reached"):
        ward.propose(strategy)
    monkeypatch.setattr(ward.studies, "get_image_uri", get_image_uri)
    assert ward.propose(strategy)["id"] == "2"


def test_a_random_image_is_selected_if_nothing_can_be_compared(new_ward: Callable[..., Ward]) -> None:
    ward = new_ward({1: None, 2: None})
    sample = ward.propose(ward.strategy())
    assert sample["id"] in ("1", "2")
    assert "disagreement" not in sample
    assert "selected at random" in sample["reason"]


def test_a_random_image_is_selected_if_a_model_cannot_be_loaded(new_ward: Callable[..., Ward]) -> None:
    ward = new_ward({1: 0})

    def refuse() -> Segmenter:
        raise BapsError("The model cannot be loaded.")

    strategy = Disagreement(refuse, refuse, {"ball": 3}, ward.folder / "clicks.lock")  # type: ignore[arg-type]
    assert strategy({}, ward.studies) == {"id": "1", "reason": "It was selected at random: The model cannot be loaded."}


def test_nothing_is_selected_if_all_images_have_labels(new_ward: Callable[..., Ward]) -> None:
    assert new_ward({}).strategy()({}, Studies(Path())) is None
