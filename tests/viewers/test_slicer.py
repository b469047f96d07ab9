"""3D Slicer's module: every form in which it asks, against the real server, through its own client class.

The forms were read in the module's source; Slicer itself is not run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import requests
import SimpleITK as sitk  # noqa: N813
from monailabel.client.client import MONAILabelClientException
from numpy.typing import NDArray
from scipy import ndimage

from baps.imaging.metrics import dice
from tests.support.frames import CENTRE, FRAMES, SHAPE, SUFFIXES, ball, write_volume
from tests.support.sites import Site, spleen_click, truth
from tests.support.slicer import Reply, Slicer

SPLEEN = 2
CASE = "ct_01"


@pytest.fixture
def slicer(hospital: Site, tmp_path: Path) -> Slicer:
    return Slicer(hospital.client, tmp_path)


@pytest.fixture
def affine(hospital: Site) -> NDArray[np.float64]:
    """Of the sample volume."""
    result: NDArray[np.float64] = nibabel.load(hospital.studies / f"{CASE}.nii.gz").affine
    return result


def _segments(*names: str) -> dict[str, NDArray[np.bool_]]:
    """The scene's segments, empty: of the site, then of the strokes as the module adds them."""
    names = names or ("spleen", "liver", "background_scribbles", "foreground_scribbles")
    return {name: np.zeros(truth(CASE).shape, bool) for name in names}


def _painted(*slices: int) -> dict[str, NDArray[np.bool_]]:
    """Strokes through the spleen, and beside it, on some slices."""
    segments, organ = _segments(), truth(CASE) == SPLEEN
    for k in slices:
        i, j = np.nonzero(organ[:, :, k])
        middle = int(np.median(j))
        line = np.flatnonzero(organ[:, middle, k])[2:-2]
        segments["foreground_scribbles"][line, middle - 1 : middle + 2, k] = organ[line, middle - 1 : middle + 2, k]
        segments["background_scribbles"][i.min() : i.max(), j.min() - 6, k] = True
    return segments


def _painted_ball(*slices: int) -> dict[str, NDArray[np.bool_]]:
    """Strokes over most of the ball of the volumes in all frames."""
    strokes = np.zeros(SHAPE, bool)
    strokes[:, :, slices] = ndimage.binary_erosion(ball(), np.ones((5, 5, 1)))[:, :, slices]
    return {"spleen": np.zeros(SHAPE, bool), "foreground_scribbles": strokes}


def _same_place(reply: Reply, source: Path) -> None:
    """The reply lies where the volume lies, as SimpleITK reads both."""
    image = sitk.ReadImage(str(source))
    assert reply.image.GetSize() == image.GetSize()
    for reading in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(reply.image, reading)(), getattr(image, reading)(), rtol=0, atol=1e-4)


# What the panel is made of.


def test_each_model_has_a_section_of_the_panel(slicer: Slicer) -> None:
    """SmartEdit shows deepgrow, Scribbles shows scribbles, Auto Segmentation shows segmentation.

    A model with labels runs by itself at Next Sample, so the one that needs no click has them alone.
    """
    info = slicer.client.info()
    shown = {name: (model["type"], model["dimension"]) for name, model in info["models"].items()}
    assert (shown["baps"], shown["zero_shot"]) == (("deepgrow", 2), ("deepgrow", 2))
    assert shown["scribbles"][0] == "scribbles"
    assert shown["organs"] == ("segmentation", 3)
    assert info["labels"] == ["spleen", "liver"]
    for name, model in info["models"].items():
        assert bool(model["labels"]) == (name == "organs")
        assert model["description"]


def test_run_of_auto_segmentation_gives_a_name_for_each_segment_that_comes(slicer: Slicer, hospital: Site) -> None:
    """The module takes the names in the order of their values, one by one for the segments that it has imported."""
    reply = slicer.ask("organs", CASE, slicer.options("organs"))
    _same_place(reply, hospital.studies / f"{CASE}.nii.gz")
    named = sorted(reply.said["label_names"].items(), key=lambda item: item[1])
    assert named == [("spleen", SPLEEN)]
    assert set(np.unique(sitk.GetArrayFromImage(reply.image))) == {0, SPLEEN}


def test_next_sample_names_an_image_that_slicer_can_fetch(slicer: Slicer, hospital: Site) -> None:
    assert {"random", "first"} <= set(slicer.client.info()["strategies"])
    for strategy in ("random", "first"):
        sample = slicer.client.next_sample(strategy, {})
        file = next(hospital.studies.glob(f"{sample['id']}.n*"))
        assert Path(sample["path"]) == file
        fetched = requests.get(f"{hospital.address}/datastore/image?image={sample['id']}", timeout=60)
        assert fetched.content == file.read_bytes()


# Clicks: the section SmartEdit.


def test_a_click_of_deepgrow(slicer: Slicer) -> None:
    i, j, k = spleen_click(CASE)
    reply = slicer.deepgrow(CASE, "spleen", [[i, j, k]])
    assert (reply.said["slice"], reply.said["axis"], reply.said["label"], reply.said["notes"]) == (k, "K", "spleen", [])
    assert reply.slices == [k]
    assert reply.mask[i, j, k]
    assert dice(reply.mask[:, :, k], truth(CASE)[:, :, k] == SPLEEN) > 0.3


def test_points_of_other_slices_stay_out_of_a_request(slicer: Slicer) -> None:
    i, j, k = spleen_click(CASE)
    alone = slicer.deepgrow(CASE, "spleen", [[i, j, k]])
    among = slicer.deepgrow(CASE, "spleen", [[60, 60, k - 3], [i, j, k]], [[3, 3, k - 3]])
    assert among.said["notes"] == []
    np.testing.assert_array_equal(alone.mask, among.mask)


def test_on_slice_zero_the_points_of_all_slices_come(slicer: Slicer) -> None:
    point = spleen_click(CASE)
    reply = slicer.deepgrow(CASE, "spleen", [point, [60, 60, 0]], [[5, 5, point[2]]])
    assert (reply.said["slice"], reply.slices) == (0, [0])
    assert reply.said["notes"] == [
        "1 foreground point of other slices skipped.",
        "1 background point of other slices skipped.",
    ]


def _box(k: int, low: int, high: int, inverted: bool) -> list[int]:
    i, j = np.nonzero(truth(CASE)[:, :, k] == SPLEEN)
    pairs = [(int(i.min()), int(i.max())), (int(j.min()), int(j.max())), (low, high)]
    return [end for pair in pairs for end in (reversed(pair) if inverted else pair)]


@pytest.mark.parametrize("inverted", [False, True])
def test_a_box_and_a_point(slicer: Slicer, inverted: bool) -> None:
    """RAS runs against the voxels of most volumes, so the ends of a pair come exchanged."""
    point = spleen_click(CASE)
    k = point[2]
    click, box = slicer.deepgrow(CASE, "spleen", [point]), _box(k, k - 1, k + 1, inverted)
    reply = slicer.deepgrow(CASE, "spleen", [point], roi=box)
    assert (reply.slices, reply.said["notes"]) == ([k], [])
    organ = truth(CASE)[:, :, k] == SPLEEN
    assert dice(reply.mask[:, :, k], organ) > dice(click.mask[:, :, k], organ)


def test_a_box_that_was_drawn_elsewhere_does_not_count_and_it_is_said(slicer: Slicer) -> None:
    point = spleen_click(CASE)
    reply = slicer.deepgrow(CASE, "spleen", [point], roi=_box(point[2], 0, 1, True))
    assert reply.said["notes"] == ["The box does not reach this slice and was skipped."]
    np.testing.assert_array_equal(reply.mask, slicer.deepgrow(CASE, "spleen", [point]).mask)


@pytest.mark.parametrize("millimetres", [-712, 480])
def test_a_box_without_a_point_comes_with_a_slice_in_millimetres(slicer: Slicer, millimetres: int) -> None:
    k = spleen_click(CASE)[2]
    reply = slicer.deepgrow(CASE, "spleen", [], roi=_box(k, k - 2, k + 2, True), at=millimetres)
    assert reply.slices == [k]
    assert reply.said["notes"] == [f"Slice {millimetres} lies outside the box; the middle slice of the box was used."]


def test_the_form_of_deepedit_and_a_switch_of_the_label(slicer: Slicer) -> None:
    """After a switch the module asks to forget what was; nothing is kept, so nothing changes."""
    spleen = spleen_click(CASE)
    i, j = np.argwhere(truth(CASE)[:, :, 12] == 1).mean(0).round().astype(int).tolist()
    points = {"spleen": [spleen], "liver": [[i, j, 12]], "background": []}
    first = slicer.deepedit(CASE, "spleen", points, reset=False)
    other = slicer.deepedit(CASE, "liver", points, reset=True)
    again = slicer.deepedit(CASE, "spleen", points, reset=True)
    assert (first.said["label"], first.slices) == ("spleen", [spleen[2]])
    assert (other.said["label"], other.slices) == ("liver", [12])
    np.testing.assert_array_equal(first.mask, again.mask)


@pytest.mark.parametrize("whole_lists", [False, True])
def test_options_are_merged_into_the_request(slicer: Slicer, whole_lists: bool) -> None:
    """A combo box comes as its choice, or as a list with the choice in front."""
    i, j, k = spleen_click(CASE)
    config = slicer.client.info()["models"]["baps"]["config"]
    assert {"plane", "adapter"} <= set(config)
    for name, choices in {key: config[key] for key in ("plane", "adapter")}.items():
        for choice in choices:
            sent: Any = [choice, *(other for other in choices if other != choice)] if whole_lists else choice
            reply = slicer.deepgrow(CASE, "spleen", [[i, j, k]], model="baps", options={name: sent})
            assert reply.said["label"] == "spleen"  # It goes before the option.
            assert reply.mask[i, j, k]


def test_an_option_named_label_overwrites_the_label(slicer: Slicer) -> None:
    reply = slicer.deepgrow(CASE, "spleen", [spleen_click(CASE)], options={"label": ["liver", "spleen"]})
    assert reply.said["label"] == "liver"


def test_points_beside_the_volume_are_left_out_and_said(slicer: Slicer) -> None:
    """Slicer lets a point be placed beside the volume."""
    i, j, k = spleen_click(CASE)
    reply = slicer.deepgrow(CASE, "spleen", [[i, j + 500, k], [i, j, k]], [[-4, j, k], [i, -1, k]])
    np.testing.assert_array_equal(reply.mask, slicer.deepgrow(CASE, "spleen", [[i, j, k]]).mask)
    assert reply.said["notes"] == [
        "1 foreground point outside the volume of 128 x 128 x 24 voxels skipped.",
        "2 background points outside the volume of 128 x 128 x 24 voxels skipped.",
    ]


@pytest.mark.parametrize(
    ("point", "sentence"),
    [
        ([-7, 60, 5], "1 foreground point outside the volume of 128 x 128 x 24 voxels skipped"),
        ([60, 60, 24], "Slice 24 lies outside the volume, which has slices 0 to 23"),
        ([60, 60, -3], "Slice -3 lies outside the volume, which has slices 0 to 23"),
    ],
)
def test_points_beside_the_volume_alone_are_refused_with_a_sentence(
    slicer: Slicer, point: list[int], sentence: str
) -> None:
    with pytest.raises(MONAILabelClientException, match="Status: 400") as refused:
        slicer.deepgrow(CASE, "spleen", [point])
    assert sentence in refused.value.msg


# Strokes: the section Scribbles.


@pytest.mark.parametrize("extension", [".nii.gz", ".nrrd", ".seg.nrrd"])
def test_strokes_on_two_slices(slicer: Slicer, affine: NDArray[np.float64], extension: str) -> None:
    k = spleen_click(CASE)[2]
    segments = _painted(k, k + 2)
    reply = slicer.scribble(CASE, "spleen", segments, affine, extension=extension)
    assert (reply.said["label"], reply.said["slices"], reply.said["notes"]) == ("spleen", [k, k + 2], [])
    assert reply.slices == [k, k + 2]
    organ = truth(CASE) == SPLEEN
    for at in (k, k + 2):
        assert dice(reply.mask[:, :, at], organ[:, :, at]) > 0.5


def test_strokes_leave_the_rest_of_the_segment_and_other_segments(slicer: Slicer, affine: NDArray[np.float64]) -> None:
    """The module puts the reply in place of the whole segment."""
    k = spleen_click(CASE)[2]
    segments, organ = _painted(k), truth(CASE)
    segments["spleen"][:, :, k - 1] = organ[:, :, k - 1] == SPLEEN
    segments["liver"] = organ == 1
    reply = slicer.scribble(CASE, "spleen", segments, affine)
    assert reply.slices == [k - 1, k]
    np.testing.assert_array_equal(reply.mask[:, :, k - 1], segments["spleen"][:, :, k - 1])


def test_strokes_and_a_box(slicer: Slicer, affine: NDArray[np.float64]) -> None:
    k = spleen_click(CASE)[2]
    box = _box(k, k, k + 1, inverted=True)
    reply = slicer.scribble(CASE, "spleen", _painted(k, k + 2), affine, roi=box)
    assert reply.slices == [k]
    assert "foreground strokes outside the box skipped" in reply.said["notes"][0]
    i, j = reply.mask.any((1, 2)).nonzero()[0], reply.mask.any((0, 2)).nonzero()[0]
    assert (i.min() >= box[1], i.max() <= box[0], j.min() >= box[3], j.max() <= box[2]) == (True,) * 4


def test_background_strokes_alone_are_refused_with_a_sentence(slicer: Slicer, affine: NDArray[np.float64]) -> None:
    segments = _painted(spleen_click(CASE)[2])
    segments["foreground_scribbles"][:] = False
    with pytest.raises(MONAILabelClientException, match="no foreground stroke. Choose Foreground and paint"):
        slicer.scribble(CASE, "spleen", segments, affine)


def test_strokes_of_another_volume_are_refused_with_a_sentence_and_not_kept(
    slicer: Slicer, hospital: Site, affine: NDArray[np.float64]
) -> None:
    with pytest.raises(MONAILabelClientException, match="does not have the geometry of its image"):
        slicer.scribble(CASE, "spleen", _painted(spleen_click(CASE)[2]), affine + np.eye(4, k=3))
    assert (hospital.log.parent / "tmp").is_dir()
    assert not list((hospital.log.parent / "tmp").rglob("*.nii.gz"))


def test_a_request_cannot_name_a_file_of_the_server_as_strokes(
    slicer: Slicer, hospital: Site, affine: NDArray[np.float64]
) -> None:
    """Neither in place of the upload, nor without one."""
    k = spleen_click(CASE)[2]
    other = str(hospital.studies / f"{CASE}.nii.gz")
    assert slicer.scribble(CASE, "spleen", _painted(k), affine, options={"label": other}).slices == [k]
    with pytest.raises(MONAILabelClientException, match="no labelmap of strokes"):
        slicer.ask("scribbles", CASE, {"label": other})


# A volume of the user's own.


@pytest.fixture
def own_volume(tmp_path: Path) -> Path:
    """A file that the server does not have, under a name as the module makes them."""
    folder = tmp_path / "own"
    folder.mkdir()
    name = write_volume(folder, "oblique", ".nii.gz")
    return (folder / f"{name}.nii.gz").rename(folder / "tmpq3xk7s2a.nii.gz")


def test_a_volume_that_is_not_the_servers_is_sent_as_a_session(slicer: Slicer, own_volume: Path) -> None:
    """The module goes on naming the volume as Slicer does, beside the session."""
    session = slicer.client.create_session(str(own_volume))["session_id"]
    assert slicer.client.get_session(session)
    reply = slicer.deepgrow("2: Patient, lying", "spleen", [CENTRE], session=session)
    assert reply.slices == [CENTRE[2]]
    assert reply.mask[CENTRE]
    _same_place(reply, own_volume)
    affine = nibabel.load(own_volume).affine
    reply = slicer.scribble("2: Patient, lying", "spleen", _painted_ball(9), affine, session=session)
    assert reply.slices == [9]
    assert dice(reply.mask[:, :, 9], ball()[:, :, 9]) > 0.8
    slicer.client.remove_session(session)
    with pytest.raises(MONAILabelClientException, match="There is no session"):
        slicer.deepgrow("2: Patient, lying", "spleen", [CENTRE], session=session)


def test_a_session_does_not_open_images_of_the_server_by_a_path(slicer: Slicer, own_volume: Path) -> None:
    session = slicer.client.create_session(str(own_volume))["session_id"]
    reply = slicer.deepgrow("/etc/passwd".replace("/", "_"), "spleen", [CENTRE], session=session)
    _same_place(reply, own_volume)
    with pytest.raises(MONAILabelClientException, match="is not a valid name"):
        slicer.deepgrow("/etc/passwd", "spleen", [CENTRE], session=session)


def test_a_label_of_a_session_is_saved_once_its_volume_is_uploaded(
    slicer: Slicer, hospital: Site, own_volume: Path
) -> None:
    """Submit Label sends the volume first; without it nothing is saved."""
    segments, affine = {"spleen": ball()}, nibabel.load(own_volume).affine
    with pytest.raises(MONAILabelClientException, match="There is no image .*of my own.* in the datastore"):
        slicer.submit("of my own", segments, affine)
    slicer.client.upload_image(str(own_volume), "of my own")
    assert slicer.submit("of my own", segments, affine)["image"] == "of my own"
    assert (hospital.studies / "labels" / "final" / "of my own.nii.gz").is_file()
    with pytest.raises(MONAILabelClientException, match="There is an image .*of my own.* already"):
        slicer.client.upload_image(str(own_volume), "of my own")


# Submit Label and Train.


def test_a_submitted_label_is_kept_with_its_names_and_lights_the_button_train(
    slicer: Slicer, hospital: Site, affine: NDArray[np.float64]
) -> None:
    """The strokes are no part of it, though the module counts them when it numbers the segments."""
    segments = _segments()
    segments["spleen"], segments["liver"] = truth(CASE) == SPLEEN, truth(CASE) == 1
    before = slicer.client.info()["datastore"]["completed"]
    slicer.submit(CASE, segments, affine)
    info = slicer.client.info()
    assert info["datastore"]["completed"] == before + 1
    label_info = slicer.client.datastore()["objects"][CASE]["labels"]["final"]["info"]
    assert label_info["label_info"] == [{"name": "spleen", "idx": 1}, {"name": "liver", "idx": 2}]
    kept = np.asarray(nibabel.load(hospital.studies / "labels" / "final" / f"{CASE}.nii.gz").dataobj)
    np.testing.assert_array_equal(kept, np.where(truth(CASE) == SPLEEN, 1, np.where(truth(CASE) == 1, 2, 0)))


def test_what_is_polled_of_a_training_can_be_read_before_there_is_one(slicer: Slicer) -> None:
    """The bars read the first trainer's numbers with these defaults."""
    info = slicer.client.info()
    stats = next(iter(info["train_stats"].values()))
    assert next(iter(info["trainers"])) == next(iter(info["train_stats"]))
    assert stats.get("best_metric", 0) == 0
    assert not stats.get("total_time")
    assert not slicer.client.train_status(check_if_running=True)
    assert json.dumps(info)


# Where the reply lies.


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("frame", FRAMES)
def test_a_reply_lies_exactly_where_its_volume_lies(slicer: Slicer, hospital: Site, frame: str, suffix: str) -> None:
    name = f"{frame}_{suffix.split('.')[1]}"
    source = hospital.studies / f"{name}{suffix}"
    click = slicer.deepgrow(name, "spleen", [CENTRE])
    _same_place(click, source)
    assert click.slices == [CENTRE[2]]
    assert click.mask[CENTRE]
    assert dice(click.mask[:, :, CENTRE[2]], ball()[:, :, CENTRE[2]]) > 0.8
    lps = sitk.ReadImage(str(source))
    affine = np.eye(4)
    affine[:3, :3] = np.array(lps.GetDirection()).reshape(3, 3) * lps.GetSpacing()
    affine[:3, 3] = lps.GetOrigin()
    affine[:2] *= -1
    painted = slicer.scribble(name, "spleen", _painted_ball(8, 9), affine, extension=suffix)
    _same_place(painted, source)
    assert painted.slices == [8, 9]
    assert painted.mask[CENTRE]
    assert dice(painted.mask[:, :, 8:10], ball()[:, :, 8:10]) > 0.8
