from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest

from baps.server.strategies.random import RandomStrategy


class _Images:
    """A datastore of images that were selected a number of seconds ago."""

    def __init__(self, ago: dict[str, float | None]) -> None:
        self.ago = ago

    def get_unlabeled_images(self) -> list[str]:
        return list(self.ago)

    def get_image_uri(self, image: str) -> str:
        return f"{image}.nii.gz"

    def get_image_info(self, image: str) -> dict[str, Any]:
        ago = self.ago[image]
        return {} if ago is None else {"strategy": {"random": {"ts": int(time.time() - ago)}}}


@pytest.mark.parametrize("ago", [0, -100, None])
def test_images_that_were_just_selected_are_selected_again(ago: float | None) -> None:
    sample = RandomStrategy()({"strategy": "random"}, _Images({"a": ago, "b": ago}))
    assert sample is not None
    assert sample["id"] in ("a", "b")
    assert sample["weight"] >= 1


def test_images_that_were_never_selected_are_preferred() -> None:
    images = _Images({"just now": 0, "never": None, "an hour ago": 3600})
    drawn = Counter(RandomStrategy()({"strategy": "random"}, images)["id"] for _ in range(50))  # type: ignore[index]
    assert drawn.most_common(1)[0][0] == "never"


def test_nothing_is_selected_if_no_image_is_left() -> None:
    assert RandomStrategy()({"strategy": "random"}, _Images({})) is None
