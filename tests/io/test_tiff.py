from __future__ import annotations

import re
import resource
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import tifffile
from PIL import Image

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.io import read_labels, read_volume
from baps.utils.limits import MAX_VOLUME_MB_VARIABLE

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (4, 5))
STACK = RANDOM.integers(0, 200, (3, 4, 5)).astype(np.uint16)
MICRONS = {"axes": "ZYX", "spacing": 2.5, "unit": "micron"}


def _as_voxels(pixels: np.ndarray) -> np.ndarray:
    return pixels.swapaxes(0, 1)[:, :, None]


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"])
def test_every_type_keeps_its_values(tmp_path: Path, kind: str) -> None:
    """This holds for both byte orders and all storage layouts."""
    maximum = 2**31 + 7 if kind in ("u4", "u8", "i8") else 1
    pixels = (GREY * maximum - (0 if kind[0] == "u" else 128)).astype(kind)
    expected = pixels.astype("f4") if kind[0] == "f" else pixels
    storages: list[dict[str, Any]] = [
        {}, {"bigtiff": True}, {"compression": "zlib"}, {"tile": (16, 16)}, {"rowsperstrip": 1},
    ]  # fmt: skip
    for order, options in product("<>", storages):
        tifffile.imwrite(tmp_path / "a.tif", pixels, byteorder=order, **options)
        volume = read_volume(tmp_path / "a.tif")
        np.testing.assert_array_equal(volume.voxels, _as_voxels(expected), err_msg=f"{order} {options}")
        assert volume.voxels.dtype == expected.dtype, (order, options)
        np.testing.assert_array_equal(volume.affine, np.diag([-1, -1, 1, 1]))
        if (
            kind not in ("u8", "i8", "f2", "f8") and "tile" not in options
        ):  # ITK does not read these, or reads them as colour.
            itk_image = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "a.tif")))
            np.testing.assert_array_equal(itk_image, pixels, err_msg=f"{order} {options}")


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate", "zstd", "lzma"])
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "u4", "f4"])
def test_compressed_values_equal_those_of_itk(tmp_path: Path, compression: str, kind: str) -> None:
    stored = {"i1": "u1", "u4": "i4"}.get(kind, kind)
    pixels = RANDOM.integers(0, 100, (40, 50)).astype(kind)
    info = {339: 2} if kind == "i1" else {339: 1} if kind == "u4" else {}  # SampleFormat
    Image.fromarray(pixels.view(stored)).save(tmp_path / "a.tif", compression=compression, tiffinfo=info)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").voxels, _as_voxels(pixels))
    if compression not in ("zstd", "lzma"):
        itk_image = SimpleITK.ReadImage(str(tmp_path / "a.tif"))
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(itk_image), pixels)


@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_planar_colour_is_read(tmp_path: Path, planes: str) -> None:
    colours = RANDOM.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    stored = colours if planes == "contig" else np.moveaxis(colours, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planes)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").voxels, _as_voxels(colours))


def test_error_names_unsupported_content(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RANDOM.random((4, 5, 3)), photometric="rgb")
    with pytest.raises(InputError, match=r"^a\.tif holds pixels that are not supported \(3 x 64 bits of float64, RGB,"):
        read_volume(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5), np.complex64))
    with pytest.raises(InputError, match=r"^a\.tif holds pixels that are not supported \(1 x 64 bits of complex64,"):
        read_volume(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "a.tif", GREY.astype(np.int16), compression="jpeg2000")
    with pytest.raises(InputError, match=r"int16, MINISBLACK, compression .*2000\); save grey values"):
        read_volume(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", ["none", "lzw", "deflate", "packbits", "zstd", "lzma"])
def test_truncated_file_is_refused(tmp_path: Path, compression: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RANDOM.integers(0, 9999, (300, 200)).astype(np.int16), compression=compression)
    content = (tmp_path / "a.tif").read_bytes()
    for length in (4, len(content) // 2, len(content) - 2):
        (tmp_path / "a.tif").write_bytes(content[:length])
        with pytest.raises(InputError, match=r"^a\.tif cannot be read"):
            read_volume(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", [None, "zlib", "tiff_lzw"])
def test_imagej_stack_is_converted_to_millimetres(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "a.tif"
    if compression == "tiff_lzw":
        message = "ImageJ=1.54f\nimages=3\nslices=3\nunit=micron\nspacing=2.5\n"
        pages = [Image.fromarray(page) for page in STACK]
        pages[0].save(
            path, save_all=True, append_images=pages[1:], compression=compression,
            tiffinfo={270: message, 282: 2.0, 283: 4.0, 296: 1},
        )  # fmt: skip
    else:
        tifffile.imwrite(path, STACK, imagej=True, metadata=MICRONS, resolution=(2, 4), compression=compression)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.voxels, STACK.T)
    np.testing.assert_allclose(volume.affine, np.diag([-0.0005, -0.00025, 0.0025, 1]))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))), STACK)
    np.testing.assert_array_equal(read_labels(path, volume), STACK.T)


@pytest.mark.parametrize("kind", ["u2", "i1", "f8"])
def test_ome_stack_is_converted_to_millimetres(tmp_path: Path, kind: str) -> None:
    metadata = {
        "axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "mm", "PhysicalSizeY": 600, "PhysicalSizeZ": 0.3,
        "PhysicalSizeZUnit": "cm",
    }  # fmt: skip
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK.astype(kind), metadata=metadata)
    volume = read_volume(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(volume.voxels, STACK.astype(kind).T)
    np.testing.assert_allclose(volume.affine, np.diag([-0.5, -0.6, 3, 1]))


@pytest.mark.parametrize(
    "options",
    [
        {}, {"imagej": True}, {"imagej": True, "metadata": MICRONS}, {"metadata": {"axes": "ZYX"}, "ome": True},
        {"imagej": True, "metadata": {**MICRONS, "unit": "pixel"}, "resolution": (2, 4)},
        {"imagej": True, "metadata": {**MICRONS, "axes": "TYX"}, "resolution": (2, 4)},
        {"imagej": True, "metadata": {**MICRONS, "axes": "CYX"}, "resolution": (2, 4)},
        {"ome": True, "metadata": {"axes": "TYX", "PhysicalSizeX": 1, "PhysicalSizeY": 1, "PhysicalSizeZ": 1}},
    ],
)  # fmt: skip
def test_pages_that_are_not_a_stack_are_refused(tmp_path: Path, options: dict[str, object]) -> None:
    if options == {"imagej": True, "metadata": MICRONS}:
        options = {**options, "resolution": (0, 0)}
    tifffile.imwrite(tmp_path / "a.tif", STACK, photometric="minisblack", **options)
    with pytest.raises(
        InputError, match=r"^a\.tif holds 3 pages, and does not say that they are a stack .* as NRRD\.$"
    ):
        read_volume(tmp_path / "a.tif")


def test_rotated_stack_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK.astype("i1"), extratags=[(274, "H", 1, 3)])
    with pytest.raises(InputError, match="Save it upright"):
        read_volume(tmp_path / "a.tif")


def test_pages_of_other_files_are_not_opened(tmp_path: Path) -> None:
    """An OME file may name other files, so an uploaded image could read any TIFF of the server."""
    metadata = {"axes": "ZYX", "PhysicalSizeX": 1, "PhysicalSizeY": 1, "PhysicalSizeZ": 1}
    tifffile.imwrite(tmp_path / "secret.ome.tif", STACK + 1, metadata=metadata)
    with tifffile.TiffFile(tmp_path / "secret.ome.tif") as file:
        message = file.ome_metadata or ""
    for name in re.findall(r'UUID="(urn:uuid:[^"]*)"', message):  # The pages of this file are in the other one.
        message = message.replace("<TiffData", "<TiffData ", 1) if "<UUID" in message else re.sub(
            r"<TiffData([^>]*?)/?>(</TiffData>)?",
            rf'<TiffData\1><UUID FileName="secret.ome.tif">{name}</UUID></TiffData>', message
        ).replace(f'UUID="{name}"', f'UUID="{name[:-1]}0"')  # fmt: skip
    assert "secret.ome.tif" in message
    tifffile.imwrite(tmp_path / "a.ome.tif", np.zeros_like(STACK), description=message, metadata=None, photometric=1)
    assert tifffile.imread(tmp_path / "a.ome.tif").any()
    with suppress(InputError):
        assert not read_volume(tmp_path / "a.ome.tif").voxels.any()


@pytest.mark.parametrize("compression", ["deflate", "zstd"])
def test_pixels_larger_than_declared_are_refused(tmp_path: Path, compression: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((2000, 10_000), np.int64), compression=compression, rowsperstrip=2000)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        for name in ("ImageLength", "RowsPerStrip"):
            file.pages.first.tags[name].overwrite(4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with suppress(InputError):
        assert read_volume(tmp_path / "a.tif").shape == (10_000, 4, 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # Kilobytes.


def test_stack_with_a_large_declared_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MAX_VOLUME_MB_VARIABLE, "16")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((20, 1000, 1000), np.uint8), imagej=True, metadata=MICRONS,
                     resolution=(2, 4), compression="zlib")  # fmt: skip
    with pytest.raises(InputError, match=r"a\.tif unpacks to .*16 MB are allowed"):
        read_volume(tmp_path / "a.tif")


def test_labels_of_signed_bytes_are_read(tmp_path: Path) -> None:
    pixels = (GREY % 3).astype(np.int8)
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    image = Volume(np.zeros((5, 4, 1), np.int16), np.eye(4))
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif", image), _as_voxels(pixels))
