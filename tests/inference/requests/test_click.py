"""Request forms of 3D Slicer and OHIF."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from baps.errors import InputError
from baps.imaging.canvas import Plane
from baps.imaging.volume import Volume
from baps.inference.requests.click import read_click, read_organ_clicks
from baps.prompts import Prompt

VOLUME = Volume(np.zeros((40, 50, 30), np.int16), np.diag([-1.0, -1.0, 2.0, 1.0]))
LABELS = ["spleen", "liver"]


def test_deepgrow_form_of_slicer_is_read() -> None:
    request = {"label": "spleen", "foreground": [[5, 6, 7], [8, 9, 7]], "background": [[1, 2, 7]], "slice": 7}
    click = read_click(request, VOLUME, LABELS)
    assert (click.label, click.plane) == ("spleen", Plane(2, 7))
    assert click.prompt.positive == ((5, 6), (8, 9))
    assert click.prompt.negative == ((1, 2),)


def test_points_of_other_slices_are_dropped_on_slice_zero() -> None:
    # Slicer sends the points of all slices when the slice is 0.
    request = {"label": "spleen", "foreground": [[5, 6, 0], [8, 9, 12]], "slice": 0}
    assert read_click(request, VOLUME, LABELS).prompt.positive == ((5, 6),)


def test_ohif_form_without_label_and_slice_is_read() -> None:
    request = {"foreground": [[28, 33, 22]], "background": [], "result_compress": False, "restore_label_idx": False}
    click = read_click(request, VOLUME, LABELS)
    assert (click.label, click.plane, click.prompt.positive) == ("", Plane(2, 22), ((28, 33),))


def test_deepedit_sends_points_by_label_name() -> None:
    request = {"label": "liver", "spleen": [[1, 1, 3]], "liver": [[5, 6, 7]], "foreground": []}
    assert read_click(request, VOLUME, LABELS).prompt.positive == ((5, 6),)


def test_an_inverted_box_is_sorted_and_clipped_to_the_slice() -> None:
    request = {"label": "spleen", "roi": [30, 10, 60, 20, 9, 3]}
    click = read_click(request, VOLUME, LABELS)
    assert click.plane == Plane(2, 6)
    assert click.prompt.box == (10, 20, 30, 49)


def test_list_option_uses_its_first_item() -> None:
    assert read_click({"label": ["liver"], "foreground": [[1, 2, 3]]}, VOLUME, LABELS).label == "liver"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "no click and no box"),
        ({"foreground": []}, "no click and no box"),
        ({"foreground": [[5, 6, 7]], "slice": 8}, "1 foreground point of other slices skipped.*on slice 8"),
        ({"foreground": [[5, 6, 99]]}, "slices 0 to 29"),
        ({"foreground": [[5, 6, 7]], "slice": -1}, "slices 0 to 29"),
        ({"foreground": [[-3, 6, 7]]}, "1 foreground point outside the volume of 40 x 50 x 30 voxels"),
        ({"foreground": [[40, 6, 7]]}, "outside the volume"),
        ({"foreground": [[5, 6, 7]], "plane": "frontal"}, "no plane 'frontal'"),
        ({"foreground": [[5, 6, 7]] * 1001}, "at most 1000"),
        ({"foreground": [[5, 6, 7]], "roi": [1, 9, 1, 9, 3, 6], "slice": 8}, "does not reach this slice"),
        ({"label": "spleen", "spleen": [[1, 2]]}, "foreground"),
        ({"background": [[5, 6, 7]]}, "no click and no box"),
        ({"foreground": [[5, 6]]}, "foreground"),
        ({"foreground": "here"}, "foreground"),
        ({"foreground": [["a", 1, 2]]}, "foreground"),
        ({"foreground": [[5, 6, 7]], "slice": "seven"}, "slice"),
        ({"roi": [1, 2, 3]}, "k0, k1"),
        ({"roi": [90, 95, 2, 3, 4, 5]}, "outside the volume"),
        ({"foreground": [[5, float("nan"), 7]]}, "finite"),
        ({"foreground": [[5, 6, float("nan")]]}, "finite"),
        ({"roi": [1, float("inf"), 2, 3, 4, float("inf")]}, "finite"),
    ],
)
def test_invalid_requests_are_refused_with_a_sentence(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_click(request_, VOLUME, LABELS)


def test_points_outside_the_volume_are_dropped_with_a_note() -> None:
    request = {"foreground": [[5, 6, 7], [-2, 6, 7]], "background": [[5, 60, 7], [1, 2, 9], [3, 3, 7]], "slice": 7}
    click = read_click(request, VOLUME, LABELS)
    assert (click.prompt.positive, click.prompt.negative) == (((5, 6),), ((3, 3),))
    assert click.notes == (
        "1 foreground point outside the volume of 40 x 50 x 30 voxels skipped.",
        "1 background point outside the volume of 40 x 50 x 30 voxels skipped.",
        "1 background point of other slices skipped.",
    )


def test_box_outside_the_volume_is_dropped_with_a_note() -> None:
    click = read_click({"foreground": [[5, 6, 7]], "roi": [90, 95, 2, 3, 4, 9]}, VOLUME, LABELS)
    assert click.prompt.box is None
    assert "lies outside the volume" in click.notes[0]


def test_no_note_if_nothing_is_dropped() -> None:
    assert read_click({"foreground": [[5, 6, 7]]}, VOLUME, LABELS).notes == ()


@pytest.mark.parametrize(
    ("plane", "expected", "click_at"),
    [
        ("as stored", Plane(2, 7), (5, 6)),
        ("axial", Plane(2, 7), (5, 6)),
        ("coronal", Plane(1, 6), (5, 7)),
        ("sagittal", Plane(0, 5), (6, 7)),
        ("J", Plane(1, 6), (5, 7)),
        (
            ["as stored", "axial", "coronal", "sagittal"],
            Plane(2, 7),
            (5, 6),
        ),  # As Slicer sends an option without a choice.
    ],
)
def test_plane_is_selected_by_name(plane: object, expected: Plane, click_at: tuple[int, int]) -> None:
    click = read_click({"foreground": [[9, 9, 9], [5, 6, 7]], "plane": plane, "slice": 7}, VOLUME, LABELS)
    assert (click.plane, click.prompt.positive) == (expected, (click_at,))


def test_box_on_another_plane() -> None:
    click = read_click({"roi": [10, 20, 30, 40, 5, 15], "plane": "coronal"}, VOLUME, LABELS)
    assert (click.plane, click.prompt.box) == (Plane(1, 35), (10, 5, 20, 15))


@pytest.mark.parametrize("slice_", [40, 8])
def test_box_without_a_point_uses_its_middle_slice(slice_: int) -> None:
    """Slicer then sends the offset of its view in millimetres as the slice."""
    click = read_click({"roi": [1, 9, 1, 9, 3, 5], "slice": slice_, "foreground": []}, VOLUME, LABELS)
    assert (click.plane.index, click.prompt.box) == (4, (1, 1, 9, 9))
    assert click.notes == (f"Slice {slice_} lies outside the box; the middle slice of the box was used.",)
    assert read_click({"roi": [1, 9, 1, 9, 3, 5], "slice": 5}, VOLUME, LABELS).plane.index == 5


def test_points_of_several_slices_are_grouped_by_slice() -> None:
    request = {
        "label": "spleen",
        "foreground": [[5, 6, 9], [7, 8, 4], [6, 6, 9.2]],
        "background": [[1, 2, 9], [3, 3, 20]],
    }
    result = read_organ_clicks(request, VOLUME, LABELS)
    assert result.label == "spleen"
    assert list(result.prompts) == [4, 9]
    assert result.prompts[4] == Prompt(((7, 8),))
    assert result.prompts[9] == Prompt(((5, 6), (6, 6)), ((1, 2),))
    assert result.background == {20: ((3, 3),)}
    assert (result.first, result.last, result.notes) == (0, 29, ())


def test_points_by_label_name_are_read() -> None:
    results = read_organ_clicks({"spleen": [[5, 6, 7]], "liver": [], "label": "spleen"}, VOLUME, LABELS)
    assert list(results.prompts) == [7]


def test_box_alone_prompts_on_its_middle_slice_and_limits_the_organ() -> None:
    result = read_organ_clicks({"roi": [30, 10, 5, 20, 20, 10], "background": [[1, 1, 15], [1, 1, 12]]}, VOLUME, LABELS)
    assert result.prompts == {15: Prompt((), ((1, 1),), (10, 5, 30, 20))}
    assert result.background == {12: ((1, 1),)}
    assert (result.first, result.last) == (10, 20)


def test_box_limits_the_clicked_slices() -> None:
    request = {"roi": [10, 30, 5, 20, 10, 20], "foreground": [[12, 12, 11], [12, 12, 25]], "background": [[1, 1, 5]]}
    result = read_organ_clicks(request, VOLUME, LABELS)
    assert result.prompts == {11: Prompt(((12, 12),), (), (10, 5, 30, 20))}
    assert result.background == {}
    assert result.notes == (
        "1 foreground point on slices that the box does not reach skipped.",
        "1 background point on slices that the box does not reach skipped.",
    )


def test_box_is_clipped_to_the_volume() -> None:
    result = read_organ_clicks({"roi": [10, 30, 5, 20, -4, 90]}, VOLUME, LABELS)
    assert (result.first, result.last, list(result.prompts)) == (0, 29, [14])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "no positive click and no box. Click on the organ on one slice or more"),
        ({"background": [[1, 1, 1]]}, "no positive click and no box"),
        ({"foreground": [[1, 1, 30]]}, "outside the volume"),
        ({"roi": [200, 220, 5, 20, 10, 20]}, "lies outside the volume"),
        ({"roi": [1, 2, 3]}, "The box must be"),
        ({"foreground": [[1, 1]]}, "foreground"),
    ],
)
def test_empty_requests_for_an_organ_are_refused(request_: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_organ_clicks(request_, VOLUME, LABELS)
