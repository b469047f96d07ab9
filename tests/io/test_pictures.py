from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray
from PIL import Image

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.io import read_labels, read_volume

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (4, 5)).astype(np.uint8)
COLOUR = RANDOM.integers(0, 256, (4, 5, 3)).astype(np.uint8)
ONE_SLICE = Volume(np.zeros((5, 4, 1), np.int16), np.diag([-1.0, -1, 1, 1]))
EXIF_ORIENTATION = 0x0112


def _as_voxels(pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    return pixels.swapaxes(0, 1)[:, :, None]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff"])
@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_columns_run_along_i_and_rows_along_j(tmp_path: Path, suffix: str, pixels: NDArray[np.uint8]) -> None:
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}")
    volume = read_volume(tmp_path / f"a{suffix}")
    assert volume.shape == (5, 4, 1)
    assert volume.colour is (pixels.ndim == 3)
    np.testing.assert_array_equal(volume.voxels, _as_voxels(pixels))


def test_picture_has_the_geometry_of_itk(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    image = SimpleITK.ReadImage(str(tmp_path / "a.png"))
    volume = read_volume(tmp_path / "a.png")
    for voxel in ((0, 0), (3, 2)):
        x, y = image.TransformIndexToPhysicalPoint(voxel)
        np.testing.assert_allclose(volume.affine @ (*voxel, 0, 1), (-x, -y, 0, 1))
        assert volume.voxels[(*voxel, 0)] == image[voxel]


@pytest.mark.parametrize(("kind", "name"), [(np.uint16, "a.png"), (np.int32, "a.tif"), (np.float32, "a.tif")])
def test_16_bit_grey_values_are_kept(tmp_path: Path, kind: type[np.generic], name: str) -> None:
    pixels = (GREY.astype(np.int64) * 200).astype(kind)
    Image.fromarray(pixels).save(tmp_path / name)
    voxels = read_volume(tmp_path / name).voxels
    assert voxels.dtype == kind
    np.testing.assert_array_equal(voxels, _as_voxels(pixels))


def test_one_bit_pictures_have_values_0_and_1(tmp_path: Path) -> None:
    Image.fromarray(GREY > 99).save(tmp_path / "a.png")
    voxels = read_volume(tmp_path / "a.png").voxels
    assert voxels.dtype == np.uint8
    np.testing.assert_array_equal(voxels, _as_voxels(GREY > 99))


def test_transparency_is_dropped(tmp_path: Path) -> None:
    alpha = np.full((4, 5, 1), 7, np.uint8)
    Image.fromarray(np.concatenate([COLOUR, alpha], -1)).save(tmp_path / "colour.png")
    Image.fromarray(np.concatenate([GREY[..., None], alpha], -1)).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_volume(tmp_path / "colour.png").voxels, _as_voxels(COLOUR))
    np.testing.assert_array_equal(read_volume(tmp_path / "grey.png").voxels, _as_voxels(GREY))


def test_colours_that_are_all_grey_become_grey(tmp_path: Path) -> None:
    Image.fromarray(np.repeat(GREY[..., None], 3, -1)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.png").voxels, _as_voxels(GREY))


def test_a_palette_gives_colours_of_an_image_and_indices_of_a_label(tmp_path: Path) -> None:
    indices = (GREY % 3).astype(np.uint8)
    palette = [10, 20, 30, 200, 0, 0, 0, 200, 0]
    picture = Image.fromarray(indices, "P")
    picture.putpalette(palette)
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        read_volume(tmp_path / "a.png").voxels, _as_voxels(np.reshape(palette, (3, 3))[indices])
    )
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png", ONE_SLICE), _as_voxels(indices))


def test_jpeg_is_read(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(0, 240, 10, dtype=np.uint8), (16, 1))
    Image.fromarray(ramp).save(tmp_path / "a.jpg", quality=95)
    volume = read_volume(tmp_path / "a.jpg")
    assert volume.shape == (24, 16, 1)
    np.testing.assert_allclose(volume.voxels, _as_voxels(ramp), atol=4)
    Image.fromarray(np.zeros((16, 24, 4), np.uint8), "CMYK").save(tmp_path / "cmyk.jpeg")
    assert read_volume(tmp_path / "cmyk.jpeg").voxels.dtype == np.uint8


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_the_exif_orientation_is_ignored(tmp_path: Path, name: str) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    Image.fromarray(GREY).save(tmp_path / name, exif=exif)
    assert read_volume(tmp_path / name).shape == (5, 4, 1)


def test_rotated_tiff_is_refused(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 3
    Image.fromarray(GREY).save(tmp_path / "a.tif", exif=exif)
    with pytest.raises(InputError, match=r"a\.tif has to be rotated .* Save it upright"):
        read_volume(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_truncated_picture_is_refused(tmp_path: Path, name: str) -> None:
    Image.fromarray(RANDOM.integers(0, 256, (40, 50, 3)).astype(np.uint8)).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=f"^{name} cannot be read .* export it again"):
        read_volume(tmp_path / name)


def test_several_pages_are_refused(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.tif", save_all=True, append_images=[Image.fromarray(GREY)] * 2)
    with pytest.raises(InputError, match=r"a\.tif holds 3 pages"):
        read_volume(tmp_path / "a.tif")


def test_a_preview_in_a_jpeg_is_not_a_second_page(tmp_path: Path) -> None:
    """Phones write such files."""
    preview = Image.fromarray(np.zeros((2, 2), np.uint8))
    Image.fromarray(GREY).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[preview], quality=100)
    np.testing.assert_allclose(read_volume(tmp_path / "a.jpg").voxels.astype(int), _as_voxels(GREY), atol=4)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)
    with pytest.raises(InputError, match=r"a\.png is too large to be read safely"):
        read_volume(tmp_path / "a.png")


@pytest.mark.parametrize("pixels", [GREY, GREY.astype(np.uint16) * 200, np.repeat(GREY[..., None], 3, -1), GREY > 99])
def test_grey_values_are_labels(tmp_path: Path, pixels: NDArray[np.generic]) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    labels = read_labels(tmp_path / "a.png", ONE_SLICE)
    assert labels.dtype.kind in "iu"
    np.testing.assert_array_equal(labels, _as_voxels(pixels if pixels.ndim == 2 else GREY))


def test_colour_labels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"The label a\.png holds colour where grey values are needed"):
        read_labels(tmp_path / "a.png", ONE_SLICE)


def _disc(size: int = 96) -> NDArray[np.float64]:
    """Draw a disc of 1 on 0 with a soft edge."""
    rows, columns = np.mgrid[:size, :size] - size / 2
    return np.clip(size / 4 - np.hypot(rows, columns) + 0.5, 0, 1)


def _saved_as_jpeg(mask: NDArray[np.float64]) -> NDArray[np.uint8]:
    file = BytesIO()
    Image.fromarray(np.where(mask >= 0.5, 255, 0).astype(np.uint8)).save(file, "JPEG", quality=75)
    return np.array(Image.open(file))


@pytest.mark.parametrize(
    ("name", "pixels", "white"),
    [
        ("a.png", (_disc() * 255).astype(np.uint8), 255),
        ("a.tif", (_disc() * 255).astype(np.uint8), 255),
        ("a.png", (_disc() * 65535).astype(np.uint16), 65535),
        ("a.png", np.repeat((_disc() * 255).astype(np.uint8)[..., None], 3, -1), 255),
        ("a.png", np.stack([(_disc() * 255).astype(np.uint8), np.full((96, 96), 255, np.uint8)], -1), 255),
        ("a.png", _saved_as_jpeg(_disc()), 255),
    ],
    ids=["png", "tiff", "16 bit", "colour", "alpha", "jpeg"],
)
def test_masks_with_soft_edges_are_binarised(
    tmp_path: Path, name: str, pixels: NDArray[np.generic], white: int
) -> None:
    assert len(np.unique(pixels)) > 16
    Image.fromarray(pixels).save(tmp_path / name)
    labels = read_labels(tmp_path / name, Volume(np.zeros((96, 96, 1)), np.eye(4)))
    np.testing.assert_array_equal(np.unique(labels), [0, white])
    assert ((labels > 0) != _as_voxels(_disc() >= 0.5)).mean() < 0.001


@pytest.mark.parametrize(
    "value",
    [
        lambda index: index % 3,
        lambda index: index % 4 * 85,
        lambda index: index % 16 * 17,
        lambda index: index % 52 * 5,
        lambda index: np.where(index % 22 == 21, 255, index % 22),
        lambda index: np.where(index % 35 == 34, 255, index % 35),
    ],
    ids=["0 to 2", "thirds", "sixteen", "spread evenly", "20 and unknown", "33 and unknown"],
)
def test_label_maps_that_contain_white_are_kept(
    tmp_path: Path, value: Callable[[NDArray[np.int64]], NDArray[np.int64]]
) -> None:
    pixels = value(np.arange(96 * 96).reshape(96, 96) // 7).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    labels = read_labels(tmp_path / "a.png", Volume(np.zeros((96, 96, 1)), np.eye(4)))
    np.testing.assert_array_equal(labels, _as_voxels(pixels))


def test_indices_of_a_palette_are_kept(tmp_path: Path) -> None:
    indices = (_disc() * 255).astype(np.uint8)
    picture = Image.fromarray(indices, "P")
    picture.putpalette(list(range(256)) * 3)
    picture.save(tmp_path / "a.png")
    labels = read_labels(tmp_path / "a.png", Volume(np.zeros((96, 96, 1)), np.eye(4)))
    np.testing.assert_array_equal(labels, _as_voxels(indices))


def test_labels_in_jpeg_are_one_object(tmp_path: Path) -> None:
    mask = np.zeros((32, 32), bool)
    mask[8:24, 4:28] = True
    Image.fromarray(np.where(mask, 250, 3).astype(np.uint8)).save(tmp_path / "a.jpg", quality=50)
    assert len(np.unique(np.asarray(Image.open(tmp_path / "a.jpg")))) > 2
    labels = read_labels(tmp_path / "a.jpg", Volume(np.zeros((32, 32, 1)), np.eye(4)))
    np.testing.assert_array_equal(labels, _as_voxels(np.where(mask, 255, 0)))


def test_grey_arrays_keep_their_values(tmp_path: Path) -> None:
    for pixels in (GREY / 255, GREY.astype(np.int16) - 99):
        np.savez(tmp_path / "a.npz", img=pixels)
        volume = read_volume(tmp_path / "a.npz")
        np.testing.assert_allclose(volume.voxels, _as_voxels(pixels), atol=1e-6)
        np.testing.assert_array_equal(volume.affine, np.diag([-1, -1, 1, 1]))
    assert volume.voxels.dtype == np.int16


@pytest.mark.parametrize("pixels", [COLOUR / 255, (COLOUR / 255).astype(np.float32), COLOUR, COLOUR.astype(np.int64)])
def test_colour_arrays_are_read(tmp_path: Path, pixels: NDArray[np.generic]) -> None:
    np.savez(tmp_path / "a.npz", img=pixels)
    voxels = read_volume(tmp_path / "a.npz").voxels
    assert voxels.dtype == np.uint8
    np.testing.assert_array_equal(voxels, _as_voxels(COLOUR))


@pytest.mark.parametrize("pixels", [COLOUR / 254 + 0.1, COLOUR.astype(np.int16) - 300, COLOUR / np.float64("nan")])
def test_colour_arrays_out_of_range_are_refused(tmp_path: Path, pixels: NDArray[np.generic]) -> None:
    np.savez(tmp_path / "a.npz", img=pixels)
    with pytest.raises(InputError, match=r"a\.npz holds colours outside 0 to"):
        read_volume(tmp_path / "a.npz")


@pytest.mark.parametrize("shape", [(4,), (4, 5, 2), (4, 5, 6, 3)])
def test_arrays_of_another_shape_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.savez(tmp_path / "a.npz", img=np.zeros(shape), seg=np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(InputError, match=r"img of a\.npz has shape"):
        read_volume(tmp_path / "a.npz")
    with pytest.raises(InputError, match=r"seg of a\.npz has shape"):
        read_labels(tmp_path / "a.npz", ONE_SLICE)


def test_empty_array_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", img=np.zeros((0, 5)))
    with pytest.raises(InputError, match="no voxels"):
        read_volume(tmp_path / "a.npz")


def test_arrays_without_the_key_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=GREY)
    with pytest.raises(InputError, match=r"a\.npz has no array img\."):
        read_volume(tmp_path / "a.npz")
    with pytest.raises(InputError, match=r"a\.npz has no array seg\."):
        read_labels(tmp_path / "a.npz", ONE_SLICE)


class _UnpicklingProbe:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self._path,)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", img=np.array([_UnpicklingProbe(tmp_path / "sprung")], dtype=object))
    with pytest.raises(InputError, match=r"img of a\.npz is of type object; numbers are needed"):
        read_volume(tmp_path / "a.npz")
    assert not (tmp_path / "sprung").exists()


def test_non_numeric_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", img=np.full((4, 5), "text"))
    with pytest.raises(InputError, match=r"img of a\.npz is of type"):
        read_volume(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=f"^{name} cannot be read .*cannot identify image file"):
        read_volume(tmp_path / name)


def test_arrays_with_one_channel_are_grey(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", img=GREY[..., None], seg=GREY[..., None] > 99)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.npz").voxels, _as_voxels(GREY))
    np.testing.assert_array_equal(read_labels(tmp_path / "a.npz", ONE_SLICE), _as_voxels(GREY > 99))


def test_array_that_numpy_opens_is_checked(tmp_path: Path) -> None:
    pixels = np.arange(12, dtype=np.int16).reshape(3, 4)
    for order in ("C", "F"):
        np.savez_compressed(tmp_path / "a.npz", img=np.asarray(pixels, order=order))
        np.testing.assert_array_equal(read_volume(tmp_path / "a.npz").voxels[:, :, 0], pixels.T)
    array = io.BytesIO()
    np.save(array, pixels)
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("img", array.getvalue())
    np.testing.assert_array_equal(np.load(tmp_path / "b.npz")["img"], pixels)
    np.testing.assert_array_equal(read_volume(tmp_path / "b.npz").voxels[:, :, 0], pixels.T)
    with zipfile.ZipFile(tmp_path / "b.npz", "a") as archive:
        archive.writestr("img.npy", array.getvalue())
    with pytest.raises(InputError, match="holds the array img 2 times"):
        read_volume(tmp_path / "b.npz")
