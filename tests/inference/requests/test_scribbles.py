"""Label maps of scribbles that 3D Slicer sends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from baps.errors import InputError, NotFoundError
from baps.imaging.volume import Volume
from baps.inference.requests.scribbles import read_scribbles
from baps.io import write_nifti, write_nrrd

VOLUME = Volume(np.zeros((20, 16, 6), np.int16), np.diag([-1.0, -1.0, 2.0, 1.0]))
INFO = [
    {"name": "spleen", "id": 1},
    {"name": "liver", "id": 2},
    {"name": "background_scribbles", "id": 3},
    {"name": "foreground_scribbles", "id": 4},
]


def _painted() -> NDArray[np.uint8]:
    """Mark the spleen on slice 1, the liver on slice 3, and strokes on slices 2 and 4."""
    labels = np.zeros(VOLUME.shape, np.uint8)
    labels[2:5, 2:5, 1] = 1
    labels[2:5, 2:5, 3] = 2
    labels[10, 3:9, (2, 4)] = 4
    labels[15, 3:9, 2] = 3
    return labels


@pytest.fixture
def labelmap(tmp_path: Path) -> str:
    path = tmp_path / "scribbles.nii.gz"
    write_nifti(path, Volume(_painted(), VOLUME.affine))
    return str(path)


def test_values_are_read_by_name(labelmap: str) -> None:
    request = {"label": labelmap, "label_info": INFO, "selected_label_name": "spleen", "roi": []}
    scribbles = read_scribbles(request, VOLUME)
    painted = _painted()
    assert (scribbles.label, scribbles.notes) == ("spleen", ())
    np.testing.assert_array_equal(scribbles.foreground, painted == 4)
    np.testing.assert_array_equal(scribbles.background, painted == 3)
    np.testing.assert_array_equal(scribbles.segmented, painted == 1)
    assert np.zeros(VOLUME.shape)[scribbles.inside].shape == VOLUME.shape
    assert scribbles.box is None


def test_default_values_are_those_of_monai_label(labelmap: str) -> None:
    scribbles = read_scribbles({"label": labelmap}, VOLUME)
    np.testing.assert_array_equal(scribbles.foreground, _painted() == 3)
    np.testing.assert_array_equal(scribbles.background, _painted() == 2)
    assert (scribbles.label, scribbles.segmented.any()) == ("", False)


def test_unnamed_segment_is_empty(labelmap: str) -> None:
    request = {"label": labelmap, "label_info": INFO[2:], "selected_label_name": "spleen"}
    assert not read_scribbles(request, VOLUME).segmented.any()


def test_label_map_along_other_axes_is_reordered(tmp_path: Path) -> None:
    rotated = VOLUME.affine @ np.diag([-1.0, 1, 1, 1])
    rotated[:3, 3] = VOLUME.affine[:3] @ (19, 0, 0, 1)
    write_nrrd(tmp_path / "s.nrrd", Volume(_painted()[::-1].copy(), rotated))
    scribbles = read_scribbles({"label": str(tmp_path / "s.nrrd"), "label_info": INFO}, VOLUME)
    np.testing.assert_array_equal(scribbles.foreground, _painted() == 4)


@pytest.mark.parametrize("roi", [[9, 11, 4, 7, 2, 3], [11, 9, 7, 4, 3, 2], [9.3, 10.8, 3.6, 7.2, 1.6, 3.4]])
def test_strokes_outside_the_box_are_dropped_with_a_note(labelmap: str, roi: list[float]) -> None:
    scribbles = read_scribbles({"label": labelmap, "label_info": INFO, "roi": roi}, VOLUME)
    assert np.argwhere(scribbles.foreground).tolist() == [[10, j, 2] for j in range(4, 8)]
    assert scribbles.inside == (slice(9, 12), slice(4, 8), slice(2, 4))
    assert scribbles.box == (9, 4, 11, 7)
    assert scribbles.notes == (
        "8 voxels of foreground strokes outside the box skipped.",
        "6 voxels of background strokes outside the box skipped.",
    )


def test_a_box_that_reaches_beyond_the_volume_is_clipped(labelmap: str) -> None:
    scribbles = read_scribbles({"label": labelmap, "label_info": INFO, "roi": [-50, 90, 99, -3, -1, 4]}, VOLUME)
    assert (scribbles.notes, np.zeros(VOLUME.shape)[scribbles.inside].shape) == ((), (20, 16, 5))
    assert scribbles.box == (0, 0, 19, 15)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"label": None}, "no labelmap of strokes"),
        ({"label": ["spleen"]}, "'label' cannot be used"),
        ({"label_info": [{"name": "foreground_scribbles"}]}, r"'label_info.0.id' cannot be used"),
        ({"label_info": [{"name": "foreground_scribbles", "id": 0}]}, r"'label_info.0.id' cannot be used"),
        ({"label_info": "spleen"}, "'label_info' cannot be used"),
        ({"label_info": [*INFO[:3], {"name": "foreground_scribbles", "id": 1}]}, "share a value"),
        ({"label_info": INFO[:3]}, "no foreground stroke"),
        ({"label_info": [{"name": "foreground_scribbles", "id": 9}]}, "no foreground stroke. Choose Foreground"),
        ({"roi": [1, 2, 3]}, r"\[i0, i1, j0, j1, k0, k1\]"),
        ({"roi": [0, "NaN", 0, 1, 0, 1]}, "'roi.1' cannot be used"),
        ({"roi": [30, 40, 0, 5, 0, 5]}, "outside the volume of 20 x 16 x 6 voxels"),
        ({"roi": [0, 3, 0, 3, 0, 3]}, "12 voxels of foreground strokes outside the box skipped.*Choose Foreground"),
    ],
)
def test_invalid_requests_are_refused_with_a_sentence(labelmap: str, changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_scribbles({"label": labelmap, "label_info": INFO, "selected_label_name": "spleen", **changed}, VOLUME)


def test_label_map_of_another_volume_is_refused(tmp_path: Path) -> None:
    moved = VOLUME.affine.copy()
    moved[0, 3] += 5
    write_nrrd(tmp_path / "s.nrrd", Volume(_painted(), moved))
    with pytest.raises(InputError, match="does not have the geometry of its image"):
        read_scribbles({"label": str(tmp_path / "s.nrrd"), "label_info": INFO}, VOLUME)


def test_missing_label_map_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_scribbles({"label": str(tmp_path / "none.nrrd")}, VOLUME)
