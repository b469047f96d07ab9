from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from baps.adapters.adapter import identity_adapter
from baps.adapters.adapter_file import write_adapter
from baps.blackbox import BlackBox
from baps.cli import app
from baps.errors import BapsError, InputError, NotFoundError
from baps.imaging.volume import Volume
from baps.io import read_volume, write_nifti
from baps.registry.store import AdapterStore


@pytest.fixture
def image(
    tmp_path: Path, new_phantom: Callable[..., tuple[Volume, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Write a volume of 40 x 36 x 12 voxels with a bright ball; there are no adapters."""
    monkeypatch.setenv("BAPS_ADAPTERS", str(tmp_path / "adapters"))
    path = tmp_path / "ball.nii.gz"
    write_nifti(path, new_phantom()[0])
    return path


def _segment(image: Path, out: Path, *words: str) -> str:
    result = CliRunner().invoke(
        app, ["segment", str(image), "--out", str(out), "--device", "cpu", *words], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.nii", "mask.nrrd"])
def test_a_click_segments_its_slice_in_the_frame_of_the_image(image: Path, tmp_path: Path, name: str) -> None:
    output = _segment(image, tmp_path / name, "--click", "20,18,6", "--label", "ball")
    mask, volume = read_volume(tmp_path / name), read_volume(image)
    assert mask.voxels.dtype == np.uint8
    assert mask.same_geometry(volume)
    assert mask.voxels[20, 18, 6] == 1
    assert set(np.unique(mask.voxels)) == {0, 1}
    assert mask.voxels.any((0, 1)).nonzero()[0].tolist() == [6]
    lines = dict(line.split(None, 1) for line in output.splitlines())
    assert lines["label"] == "ball"
    assert lines["slice"] == "6 across K"
    assert lines["adapter"].startswith("none")
    assert f"{mask.voxels.sum()} voxels" in lines["mask"]
    assert {"window", "time"} <= set(lines)


@pytest.mark.parametrize(("plane", "axis", "index"), [("J", 1, 18), ("sagittal", 0, 20), ("axial", 2, 6)])
def test_other_planes(image: Path, tmp_path: Path, plane: str, axis: int, index: int) -> None:
    _segment(image, tmp_path / "mask.nrrd", "--click", "20,18,6", "--plane", plane)
    voxels = read_volume(tmp_path / "mask.nrrd").voxels
    assert np.unique(np.nonzero(voxels)[axis]).tolist() == [index]


def test_box(image: Path, tmp_path: Path) -> None:
    _segment(image, tmp_path / "mask.nrrd", "--box", "10,30,8,28,4,8")
    assert read_volume(tmp_path / "mask.nrrd").voxels.any((0, 1)).nonzero()[0].tolist() == [6]


def test_notes_are_printed(image: Path, tmp_path: Path) -> None:
    words = ("--click", "20,18,5", "--click", "20,18,6", "--background", "2,2,6")
    assert "1 foreground point of other slices skipped" in _segment(image, tmp_path / "mask.nrrd", *words)


def test_the_adapter_of_the_label_is_used_by_default(image: Path, tmp_path: Path, bundled: BlackBox) -> None:
    store = AdapterStore(tmp_path / "adapters")
    made_for = {"weights_sha256": bundled.capabilities.weights_sha256}
    store.add("ball", identity_adapter(), {"black_box": made_for, "adapter": identity_adapter().to_dict()}, "accepted")
    store.publish("ball", "v0001")
    click = ("--click", "20,18,6", "--label", "ball")
    assert "ball v0001" in _segment(image, tmp_path / "mask.nrrd", *click)
    assert "ball v0001" not in _segment(image, tmp_path / "mask.nrrd", *click, "--unadapted")
    elsewhere = ("--adapters", str(tmp_path / "other"))
    assert "ball v0001" not in _segment(image, tmp_path / "mask.nrrd", *click, *elsewhere)


def _write_adapter(file: Path, weights_sha256: str) -> Path:
    adapter = replace(identity_adapter(), zoom=0.5)
    record = {"black_box": {"name": "a model", "weights_sha256": weights_sha256}, "adapter": adapter.to_dict()}
    write_adapter(file, adapter, record)
    return file


@pytest.mark.parametrize("more", [(), ("--whole-organ",)])
def test_the_adapter_of_a_file_is_used(image: Path, tmp_path: Path, bundled: BlackBox, more: tuple[str, ...]) -> None:
    file = _write_adapter(tmp_path / "ball.adapter", bundled.capabilities.weights_sha256)
    click = ("--click", "20,18,6", *more)
    output = _segment(image, tmp_path / "adapted.nrrd", *click, "--adapter", str(file))
    assert f"adapter {file}\n" in output
    assert "adapter none" in _segment(image, tmp_path / "unadapted.nrrd", *click)
    adapted, unadapted = (read_volume(tmp_path / f"{name}.nrrd").voxels for name in ("adapted", "unadapted"))
    assert adapted[20, 18, 6]
    assert not np.array_equal(adapted, unadapted)


def test_an_adapter_file_that_cannot_be_used(image: Path, tmp_path: Path) -> None:
    other = str(_write_adapter(tmp_path / "other.adapter", "0" * 64))
    (tmp_path / "broken.adapter").write_bytes(Path(other).read_bytes()[:-9])
    for words, message in (
        (("--adapter", other), "trained for a model with weights 000000000000"),
        (("--adapter", str(tmp_path / "broken.adapter")), "or it is broken"),
        (("--adapter", str(tmp_path / "absent")), "There is no adapter file"),
        (("--adapter", other, "--adapters", str(tmp_path)), "--adapter goes with neither"),
        (("--adapter", other, "--zero-shot"), "--adapter goes with neither"),
    ):
        with pytest.raises(InputError, match=message):
            _segment(image, tmp_path / "mask.nrrd", "--click", "20,18,6", *words)
    assert not (tmp_path / "mask.nrrd").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no click and no box"),
        (("--click", "20,18"), "--click takes 3 numbers"),
        (("--click", "20,18,x"), "--click takes 3 numbers"),
        (("--click", "20,18,nan"), "foreground"),
        (("--click", "20,18,6", "--background", "1"), "--background takes 3 numbers"),
        (("--box", "1,2,3"), "--box takes 6 numbers"),
        (("--click", "20,18,60"), "60"),
        (("--click", "20,18,6", "--plane", "diagonal"), "diagonal"),
        (("--click", "20,18,6", "--black-box", "sam"), "sam needs weights"),
    ],
)
def test_errors_write_nothing(image: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _segment(image, tmp_path / "mask.nrrd", *words)
    assert not (tmp_path / "mask.nrrd").exists()


def test_outputs_that_cannot_be_written(image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    for out, message in (("mask.png", "nrrd"), ("absent/mask.nrrd", "absent"), (image.name, "replace the image")):
        with pytest.raises(InputError, match=message):
            _segment(image, tmp_path / out, "--click", "20,18,6")
    (tmp_path / "folder.nrrd").mkdir()
    with pytest.raises(BapsError, match=r"folder\.nrrd"):
        _segment(image, tmp_path / "folder.nrrd", "--click", "20,18,6")
    assert image.read_bytes() == before


def test_missing_image(image: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="absent"):
        _segment(tmp_path / "absent.nii.gz", tmp_path / "mask.nrrd", "--click", "1,1,1")


def test_a_whole_organ(image: Path, tmp_path: Path) -> None:
    words = ("--click", "20,18,6", "--background", "2,2,6", "--whole-organ")
    output = _segment(image, tmp_path / "mask.nii.gz", *words)
    mask = read_volume(tmp_path / "mask.nii.gz")
    assert mask.same_geometry(read_volume(image))
    assert set(np.unique(mask.voxels)) == {0, 1}
    shown = mask.voxels.any((0, 1)).nonzero()[0].tolist()
    assert len(shown) > 3
    assert f"{shown[0]} to {shown[-1]} across K, {len(shown)} of them" in output
    assert f"{mask.voxels.sum()} voxels" in output
    _segment(image, tmp_path / "slice.nii.gz", "--click", "20,18,6", "--background", "2,2,6")
    np.testing.assert_array_equal(mask.voxels[..., 6], read_volume(tmp_path / "slice.nii.gz").voxels[..., 6])


def test_a_whole_organ_with_a_time_limit(image: Path, tmp_path: Path) -> None:
    words = ("--click", "20,18,6", "--whole-organ", "--seconds", "1e-6")
    assert "the mask ends at slices 5, 7" in _segment(image, tmp_path / "mask.nrrd", *words)
    assert read_volume(tmp_path / "mask.nrrd").voxels.any((0, 1)).nonzero()[0].tolist() == [6]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--click", "20,18,6", "--seconds", "5"), "goes with --whole-organ"),
        (("--click", "20,18,6", "--whole-organ", "--seconds", "0"), "must be positive"),
        (("--click", "20,18,6", "--whole-organ", "--plane", "coronal"), "Omit --plane"),
        (("--background", "20,18,6", "--whole-organ"), "on one slice or more"),
    ],
)
def test_options_that_exclude_whole_organ(image: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _segment(image, tmp_path / "mask.nrrd", *words)


def test_control_c_writes_nothing(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "mask.nrrd").write_text("an older one")
    monkeypatch.setattr("baps.inference.whole_organ.propagate", interrupt)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BapsError, match="Interrupted; nothing was written"):
        _segment(image, tmp_path / "mask.nrrd", "--click", "20,18,6", "--whole-organ")
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "mask.nrrd").read_text() == "an older one"
