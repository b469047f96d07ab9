from __future__ import annotations

from typing import ClassVar

import pytest

from baps.errors import BapsError, InputError, StorageError
from baps.server.datastores.conversions import SeveralImagesError
from baps.server.strategies.usable import first_usable


class _Images:
    """A datastore that fails depending on the first letter of the image."""

    _ERRORS: ClassVar[dict[str, Exception]] = {
        "i": InputError("It has missing slices."),
        "p": BapsError("The PACS."),
        "s": StorageError("The disk."),
    }

    def get_image_uri(self, image: str) -> str:
        if image == "several":
            raise SeveralImagesError(image, ["one", "other"])
        if "-volume" in image:
            image = "i"
        if image[0] in self._ERRORS:
            raise self._ERRORS[image[0]]
        return f"{image}.nii.gz"


def test_unusable_images_are_skipped() -> None:
    assert first_usable(["i1", "p1", "i2", "p2", "a", "b"], _Images()) == "a"
    assert first_usable(["several", "a"], _Images()) == "a"
    assert first_usable([], _Images()) is None


def test_the_reason_is_reported_if_no_image_can_be_used() -> None:
    with pytest.raises(InputError, match="None of 2 images .* missing slices"):
        first_usable(["i1", "i2"], _Images())
    with pytest.raises(BapsError, match="The PACS"):
        first_usable(["i1", "p1", "i2"], _Images())


def test_repeated_failures_of_the_pacs_or_the_disk_are_reported() -> None:
    with pytest.raises(BapsError, match="The PACS"):
        first_usable(["p1", "p2", "p3", "a"], _Images())
    with pytest.raises(StorageError, match="The disk"):
        first_usable(["s1", "a"], _Images())
