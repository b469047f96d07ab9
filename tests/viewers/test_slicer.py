"""Every form of request of 3D Slicer's module, sent to the real server with the module's own client class.

The forms follow the module's source code; Slicer itself is not run.
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
from tests.support.sites import Site, sample_labels, spleen_click
from tests.support.slicer import Reply, Slicer

SPLEEN = 2
CASE = "ct_01"


@pytest.fixture
def slicer(hospital: Site, tmp_path: Path) -> Slicer:
    return Slicer(hospital.client, tmp_path)


@pytest.fixture
def affine(hospital: Site) -> NDArray[np.float64]:
    """Return the affine of the sample volume."""
    result: NDArray[np.float64] = nibabel.load(hospital.studies / f"{CASE}.nii.gz").affine
    return result


def _segments(*names: str) -> dict[str, NDArray[np.bool_]]:
    """Create the empty segments of the scene: the site's, and then the scribbles as the module adds them."""
    names = names or ("spleen", "liver", "background_scribbles", "foreground_scribbles")
    return {name: np.zeros(sample_labels(CASE).shape, bool) for name in names}


def _painted(*slices: int) -> dict[str, NDArray[np.bool_]]:
    """Draw scribbles through the spleen and beside it on some slices."""
    segments, organ = _segments(), sample_labels(CASE) == SPLEEN
    for k in slices:
        i, j = np.nonzero(organ[:, :, k])
        middle = int(np.median(j))
        line = np.flatnonzero(organ[:, middle, k])[2:-2]
        segments["foreground_scribbles"][line, middle - 1 : middle + 2, k] = organ[line, middle - 1 : middle + 2, k]
        segments["background_scribbles"][i.min() : i.max(), j.min() - 6, k] = True
    return segments


def _painted_ball(*slices: int) -> dict[str, NDArray[np.bool_]]:
    """Draw scribbles over most of the ball in the volumes of all geometries."""
    strokes = np.zeros(SHAPE, bool)
    strokes[:, :, slices] = ndimage.binary_erosion(ball(), np.ones((5, 5, 1)))[:, :, slices]
    return {"spleen": np.zeros(SHAPE, bool), "foreground_scribbles": strokes}


def _same_place(reply: Reply, source: Path) -> None:
    """Check that the reply has the geometry of the volume, as SimpleITK reads both."""
    image = sitk.ReadImage(str(source))
    assert reply.image.GetSize() == image.GetSize()
    for reading in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(reply.image, reading)(), getattr(image, reading)(), rtol=0, atol=1e-4)


# The panel.


def test_each_model_appears_in_a_section_of_the_panel(slicer: Slicer) -> None:
    """SmartEdit shows deepgrow, Scribbles shows scribbles, Auto Segmentation shows segmentation.

    A model with labels runs automatically at Next Sample, so only the model without clicks has labels.
    """
    info = slicer.client.info()
    sections = {name: (model["type"], model["dimension"]) for name, model in info["models"].items()}
    assert (sections["baps"], sections["zero_shot"]) == (("deepgrow", 2), ("deepgrow", 2))
    assert sections["scribbles"][0] == "scribbles"
    assert sections["organs"] == ("segmentation", 3)
    assert info["labels"] == ["spleen", "liver"]
    for name, model in info["models"].items():
        assert bool(model["labels"]) == (name == "organs")
        assert model["description"]


def test_auto_segmentation_names_each_segment(slicer: Slicer, hospital: Site) -> None:
    """The module assigns the names, in the order of their values, to the imported segments."""
    reply = slicer.infer("organs", CASE, slicer.options("organs"))
    _same_place(reply, hospital.studies / f"{CASE}.nii.gz")
    segments = sorted(reply.info["label_names"].items(), key=lambda item: item[1])
    assert segments == [("spleen", SPLEEN)]
    assert set(np.unique(sitk.GetArrayFromImage(reply.image))) == {0, SPLEEN}


def test_next_sample_is_an_image_that_slicer_can_fetch(slicer: Slicer, hospital: Site) -> None:
    assert {"random", "first"} <= set(slicer.client.info()["strategies"])
    for strategy in ("random", "first"):
        sample = slicer.client.next_sample(strategy, {})
        file = next(hospital.studies.glob(f"{sample['id']}.n*"))
        assert Path(sample["path"]) == file
        fetched = requests.get(f"{hospital.address}/datastore/image?image={sample['id']}", timeout=60)
        assert fetched.content == file.read_bytes()


# Clicks: the section SmartEdit.


def test_deepgrow_click(slicer: Slicer) -> None:
    i, j, k = spleen_click(CASE)
    reply = slicer.deepgrow(CASE, "spleen", [[i, j, k]])
    assert (reply.info["slice"], reply.info["axis"], reply.info["label"], reply.info["notes"]) == (k, "K", "spleen", [])
    assert reply.slices == [k]
    assert reply.mask[i, j, k]
    assert dice(reply.mask[:, :, k], sample_labels(CASE)[:, :, k] == SPLEEN) > 0.3


def test_points_of_other_slices_are_not_sent(slicer: Slicer) -> None:
    i, j, k = spleen_click(CASE)
    alone = slicer.deepgrow(CASE, "spleen", [[i, j, k]])
    among = slicer.deepgrow(CASE, "spleen", [[60, 60, k - 3], [i, j, k]], [[3, 3, k - 3]])
    assert among.info["notes"] == []
    np.testing.assert_array_equal(alone.mask, among.mask)


def test_on_slice_zero_the_points_of_all_slices_are_sent(slicer: Slicer) -> None:
    point = spleen_click(CASE)
    reply = slicer.deepgrow(CASE, "spleen", [point, [60, 60, 0]], [[5, 5, point[2]]])
    assert (reply.info["slice"], reply.slices) == (0, [0])
    assert reply.info["notes"] == [
        "1 foreground point of other slices skipped.",
        "1 background point of other slices skipped.",
    ]


def _box(k: int, low: int, high: int, inverted: bool) -> list[int]:
    i, j = np.nonzero(sample_labels(CASE)[:, :, k] == SPLEEN)
    pairs = [(int(i.min()), int(i.max())), (int(j.min()), int(j.max())), (low, high)]
    return [end for pair in pairs for end in (reversed(pair) if inverted else pair)]


@pytest.mark.parametrize("inverted", [False, True])
def test_a_box_and_a_point(slicer: Slicer, inverted: bool) -> None:
    """RAS axes are opposite to the voxel axes of most volumes, so that the ends of the box are exchanged."""
    point = spleen_click(CASE)
    k = point[2]
    click, box = slicer.deepgrow(CASE, "spleen", [point]), _box(k, k - 1, k + 1, inverted)
    reply = slicer.deepgrow(CASE, "spleen", [point], roi=box)
    assert (reply.slices, reply.info["notes"]) == ([k], [])
    organ = sample_labels(CASE)[:, :, k] == SPLEEN
    assert dice(reply.mask[:, :, k], organ) > dice(click.mask[:, :, k], organ)


def test_box_on_other_slices_is_ignored_with_a_note(slicer: Slicer) -> None:
    point = spleen_click(CASE)
    reply = slicer.deepgrow(CASE, "spleen", [point], roi=_box(point[2], 0, 1, True))
    assert reply.info["notes"] == ["The box does not reach this slice and was skipped."]
    np.testing.assert_array_equal(reply.mask, slicer.deepgrow(CASE, "spleen", [point]).mask)


@pytest.mark.parametrize("millimetres", [-712, 480])
def test_box_without_a_point_has_a_slice_in_millimetres(slicer: Slicer, millimetres: int) -> None:
    k = spleen_click(CASE)[2]
    reply = slicer.deepgrow(CASE, "spleen", [], roi=_box(k, k - 2, k + 2, True), at=millimetres)
    assert reply.slices == [k]
    assert reply.info["notes"] == [f"Slice {millimetres} lies outside the box; the middle slice of the box was used."]


def test_deepedit_form_and_change_of_the_label(slicer: Slicer) -> None:
    """After a change the module sends a reset; the server keeps no state, so that nothing changes."""
    spleen = spleen_click(CASE)
    i, j = np.argwhere(sample_labels(CASE)[:, :, 12] == 1).mean(0).round().astype(int).tolist()
    points = {"spleen": [spleen], "liver": [[i, j, 12]], "background": []}
    first = slicer.deepedit(CASE, "spleen", points, reset=False)
    second_reply = slicer.deepedit(CASE, "liver", points, reset=True)
    again = slicer.deepedit(CASE, "spleen", points, reset=True)
    assert (first.info["label"], first.slices) == ("spleen", [spleen[2]])
    assert (second_reply.info["label"], second_reply.slices) == ("liver", [12])
    np.testing.assert_array_equal(first.mask, again.mask)


@pytest.mark.parametrize("whole_lists", [False, True])
def test_options_are_merged_into_the_request(slicer: Slicer, whole_lists: bool) -> None:
    """The module sends a combo box as its choice, or as a list with the choice first."""
    i, j, k = spleen_click(CASE)
    config = slicer.client.info()["models"]["baps"]["config"]
    assert {"plane", "adapter"} <= set(config)
    for name, choices in {key: config[key] for key in ("plane", "adapter")}.items():
        for choice in choices:
            sent: Any = (
                [choice, *(second_reply for second_reply in choices if second_reply != choice)]
                if whole_lists
                else choice
            )
            reply = slicer.deepgrow(CASE, "spleen", [[i, j, k]], model="baps", options={name: sent})
            assert reply.info["label"] == "spleen"  # The label of the request takes precedence over the option.
            assert reply.mask[i, j, k]


def test_an_option_named_label_overwrites_the_label(slicer: Slicer) -> None:
    reply = slicer.deepgrow(CASE, "spleen", [spleen_click(CASE)], options={"label": ["liver", "spleen"]})
    assert reply.info["label"] == "liver"


def test_points_outside_the_volume_are_ignored_with_a_note(slicer: Slicer) -> None:
    """Slicer allows points outside the volume."""
    i, j, k = spleen_click(CASE)
    reply = slicer.deepgrow(CASE, "spleen", [[i, j + 500, k], [i, j, k]], [[-4, j, k], [i, -1, k]])
    np.testing.assert_array_equal(reply.mask, slicer.deepgrow(CASE, "spleen", [[i, j, k]]).mask)
    assert reply.info["notes"] == [
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
def test_only_points_outside_the_volume_are_refused(slicer: Slicer, point: list[int], sentence: str) -> None:
    with pytest.raises(MONAILabelClientException, match="Status: 400") as refused:
        slicer.deepgrow(CASE, "spleen", [point])
    assert sentence in refused.value.msg


# The section Scribbles.


@pytest.mark.parametrize("extension", [".nii.gz", ".nrrd", ".seg.nrrd"])
def test_scribbles_on_two_slices(slicer: Slicer, affine: NDArray[np.float64], extension: str) -> None:
    k = spleen_click(CASE)[2]
    segments = _painted(k, k + 2)
    reply = slicer.scribble(CASE, "spleen", segments, affine, extension=extension)
    assert (reply.info["label"], reply.info["slices"], reply.info["notes"]) == ("spleen", [k, k + 2], [])
    assert reply.slices == [k, k + 2]
    organ = sample_labels(CASE) == SPLEEN
    for at in (k, k + 2):
        assert dice(reply.mask[:, :, at], organ[:, :, at]) > 0.5


def test_scribbles_keep_other_slices_and_segments(slicer: Slicer, affine: NDArray[np.float64]) -> None:
    """The module replaces the whole segment by the reply."""
    k = spleen_click(CASE)[2]
    segments, organ = _painted(k), sample_labels(CASE)
    segments["spleen"][:, :, k - 1] = organ[:, :, k - 1] == SPLEEN
    segments["liver"] = organ == 1
    reply = slicer.scribble(CASE, "spleen", segments, affine)
    assert reply.slices == [k - 1, k]
    np.testing.assert_array_equal(reply.mask[:, :, k - 1], segments["spleen"][:, :, k - 1])


def test_scribbles_and_a_box(slicer: Slicer, affine: NDArray[np.float64]) -> None:
    k = spleen_click(CASE)[2]
    box = _box(k, k, k + 1, inverted=True)
    reply = slicer.scribble(CASE, "spleen", _painted(k, k + 2), affine, roi=box)
    assert reply.slices == [k]
    assert "foreground strokes outside the box skipped" in reply.info["notes"][0]
    i, j = reply.mask.any((1, 2)).nonzero()[0], reply.mask.any((0, 2)).nonzero()[0]
    assert (i.min() >= box[1], i.max() <= box[0], j.min() >= box[3], j.max() <= box[2]) == (True,) * 4


def test_only_background_scribbles_are_refused(slicer: Slicer, affine: NDArray[np.float64]) -> None:
    segments = _painted(spleen_click(CASE)[2])
    segments["foreground_scribbles"][:] = False
    with pytest.raises(MONAILabelClientException, match="no foreground stroke. Choose Foreground and paint"):
        slicer.scribble(CASE, "spleen", segments, affine)


def test_scribbles_of_another_volume_are_refused_and_deleted(
    slicer: Slicer, hospital: Site, affine: NDArray[np.float64]
) -> None:
    with pytest.raises(MONAILabelClientException, match="does not have the geometry of its image"):
        slicer.scribble(CASE, "spleen", _painted(spleen_click(CASE)[2]), affine + np.eye(4, k=3))
    assert (hospital.log.parent / "tmp").is_dir()
    assert not list((hospital.log.parent / "tmp").rglob("*.nii.gz"))


def test_request_cannot_name_a_file_of_the_server_as_scribbles(
    slicer: Slicer, hospital: Site, affine: NDArray[np.float64]
) -> None:
    """Neither with an upload nor without one."""
    k = spleen_click(CASE)[2]
    second_reply = str(hospital.studies / f"{CASE}.nii.gz")
    assert slicer.scribble(CASE, "spleen", _painted(k), affine, options={"label": second_reply}).slices == [k]
    with pytest.raises(MONAILabelClientException, match="no labelmap of strokes"):
        slicer.infer("scribbles", CASE, {"label": second_reply})


# Volumes that are not on the server.


@pytest.fixture
def own_volume(tmp_path: Path) -> Path:
    """Write a volume that the server does not have, with a name like the module's."""
    folder = tmp_path / "own"
    folder.mkdir()
    name = write_volume(folder, "oblique", ".nii.gz")
    return (folder / f"{name}.nii.gz").rename(folder / "tmpq3xk7s2a.nii.gz")


def test_volume_that_is_not_on_the_server_is_sent_as_a_session(slicer: Slicer, own_volume: Path) -> None:
    """The module also sends Slicer's name of the volume with the session."""
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


def test_session_cannot_open_images_of_the_server_by_path(slicer: Slicer, own_volume: Path) -> None:
    session = slicer.client.create_session(str(own_volume))["session_id"]
    reply = slicer.deepgrow("/etc/passwd".replace("/", "_"), "spleen", [CENTRE], session=session)
    _same_place(reply, own_volume)
    with pytest.raises(MONAILabelClientException, match="is not a valid name"):
        slicer.deepgrow("/etc/passwd", "spleen", [CENTRE], session=session)


def test_label_of_a_session_is_saved_after_its_volume_is_uploaded(
    slicer: Slicer, hospital: Site, own_volume: Path
) -> None:
    """Submit Label sends the volume first; without the volume nothing is saved."""
    segments, affine = {"spleen": ball()}, nibabel.load(own_volume).affine
    with pytest.raises(MONAILabelClientException, match="There is no image .*of my own.* in the datastore"):
        slicer.submit("of my own", segments, affine)
    slicer.client.upload_image(str(own_volume), "of my own")
    assert slicer.submit("of my own", segments, affine)["image"] == "of my own"
    assert (hospital.studies / "labels" / "final" / "of my own.nii.gz").is_file()
    with pytest.raises(MONAILabelClientException, match="There is an image .*of my own.* already"):
        slicer.client.upload_image(str(own_volume), "of my own")


# Submit Label and Train.


def test_submitted_label_is_saved_with_its_names_and_enables_train(
    slicer: Slicer, hospital: Site, affine: NDArray[np.float64]
) -> None:
    """The label has no scribbles, although the module counts them when it numbers the segments."""
    segments = _segments()
    segments["spleen"], segments["liver"] = sample_labels(CASE) == SPLEEN, sample_labels(CASE) == 1
    before = slicer.client.info()["datastore"]["completed"]
    slicer.submit(CASE, segments, affine)
    info = slicer.client.info()
    assert info["datastore"]["completed"] == before + 1
    label_info = slicer.client.datastore()["objects"][CASE]["labels"]["final"]["info"]
    assert label_info["label_info"] == [{"name": "spleen", "idx": 1}, {"name": "liver", "idx": 2}]
    saved_voxels = np.asarray(nibabel.load(hospital.studies / "labels" / "final" / f"{CASE}.nii.gz").dataobj)
    np.testing.assert_array_equal(
        saved_voxels, np.where(sample_labels(CASE) == SPLEEN, 1, np.where(sample_labels(CASE) == 1, 2, 0))
    )


def test_train_stats_are_readable_before_the_first_training(slicer: Slicer) -> None:
    """The progress bars read the first trainer's numbers with these defaults."""
    info = slicer.client.info()
    stats = next(iter(info["train_stats"].values()))
    assert next(iter(info["trainers"])) == next(iter(info["train_stats"]))
    assert stats.get("best_metric", 0) == 0
    assert not stats.get("total_time")
    assert not slicer.client.train_status(check_if_running=True)
    assert json.dumps(info)


# The geometry of the reply.


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("frame", FRAMES)
def test_reply_has_exactly_the_geometry_of_its_volume(slicer: Slicer, hospital: Site, frame: str, suffix: str) -> None:
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
