from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.io import read_volume
from baps.io.metaimage import read_metaimage_affine


def _itk_bytes(path: Path, voxels: np.ndarray, compress: bool = False, colour: bool = False) -> bytes:
    image = SimpleITK.GetImageFromArray(voxels, isVector=colour)
    SimpleITK.WriteImage(image, str(path), compress)
    return path.read_bytes()


VOXELS = np.random.default_rng(0).integers(0, 99, (6, 5, 4)).astype(np.int16)


@given(
    dimensions=st.sampled_from([2, 3]),
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    steps=st.tuples(*[st.floats(0.3, 6)] * 3),
    hand=st.sampled_from([-1, 1]),
    kind=st.sampled_from(["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]),
    compress=st.booleans(),
    colour=st.booleans(),
)
def test_geometry_equals_that_of_itk(
    tmp_path_factory: pytest.TempPathFactory, dimensions: int, angles: tuple[float, ...], steps: tuple[float, ...],
    hand: int, kind: str, compress: bool, colour: bool,
) -> None:  # fmt: skip
    path = tmp_path_factory.mktemp("metaimage") / "a.mha"
    shape = (6, 5, 4)[3 - dimensions :]
    voxels = np.random.default_rng(0).integers(0, 99, (*shape, 3) if colour else shape).astype("u1" if colour else kind)
    image = SimpleITK.GetImageFromArray(voxels, isVector=colour)
    rotated = Rotation.from_euler("xyz", (0, 0, angles[2]) if dimensions == 2 else angles).as_matrix() * [hand, 1, 1]
    image.SetDirection(rotated[:dimensions, :dimensions].ravel())
    image.SetSpacing(steps[:dimensions])
    image.SetOrigin((10.5, -20, 30)[:dimensions])
    SimpleITK.WriteImage(image, str(path), compress)
    volume, itk_image = read_volume(path), SimpleITK.ReadImage(str(path))
    itk_voxels = SimpleITK.GetArrayFromImage(itk_image)
    itk_voxels = np.stack([itk_voxels[..., c].T for c in range(3)], -1) if colour else itk_voxels.T
    np.testing.assert_array_equal(volume.voxels, itk_voxels.reshape(volume.voxels.shape))
    assert volume.voxels.dtype == itk_voxels.dtype
    for index in ((0, 0, 0), (3, 4, 5), (0, 4, 0)):
        x, y, *z = itk_image.TransformIndexToPhysicalPoint(index[:dimensions])
        expected = (-x, -y, *z) if z else (-x, -y, index[2])
        np.testing.assert_allclose((volume.affine @ (*index, 1))[:3], expected, atol=1e-6)
    np.testing.assert_array_equal(read_metaimage_affine(path), volume.affine)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Offset", b"Position"), (b"Offset", b"Origin"), (b"TransformMatrix", b"Rotation"),
        (b"TransformMatrix", b"Orientation"), (b"ElementSpacing", b"ElementSize"), (b"MET_SHORT", b"MET_USHORT"),
        (b"BinaryDataByteOrderMSB = False", b"BinaryDataByteOrderMSB = True"),
        (b"BinaryDataByteOrderMSB = False", b"ElementByteOrderMSB = True"),
        (b"CenterOfRotation = 0 0 0", b"ElementToIntensityFunctionSlope = 2"), (b"4 5 6", b"4 5 3"),
        (b"MET_SHORT", b"MET_CHAR"), (b"6\nElementType = MET_SHORT", b"3\nElementType = MET_LONG"),
        (b"CompressedData = False", b""), (b"BinaryData = True\n", b""), (b"\n", b"\r\n"),
    ],
)  # fmt: skip
def test_headers_of_other_programs_are_read_as_itk_does(tmp_path: Path, old: bytes, new: bytes) -> None:
    image = SimpleITK.GetImageFromArray(VOXELS)
    image.SetSpacing((0.5, 0.6, 3))
    image.SetDirection((0, 1, 0, 0, 0, 1, 1, 0, 0))
    SimpleITK.WriteImage(image, str(tmp_path / "a.mha"))
    header, mark, voxels = (tmp_path / "a.mha").read_bytes().partition(b"ElementDataFile = LOCAL\n")
    assert old in header
    (tmp_path / "a.mha").write_bytes(header.replace(old, new) + mark + voxels)
    itk_image = SimpleITK.ReadImage(str(tmp_path / "a.mha"))
    volume = read_volume(tmp_path / "a.mha")
    np.testing.assert_array_equal(volume.voxels, SimpleITK.GetArrayFromImage(itk_image).T)
    x, y, z = itk_image.TransformIndexToPhysicalPoint((1, 2, 3))
    np.testing.assert_allclose(volume.affine @ (1, 2, 3, 1), (-x, -y, z, 1))


@pytest.mark.parametrize("value", ["/etc/passwd", "a.raw", "LIST", "slice%03d.raw 1 3 1"])
def test_voxels_in_another_file_are_refused(tmp_path: Path, value: str) -> None:
    content = _itk_bytes(tmp_path / "a.mha", VOXELS).replace(b"LOCAL", value.encode())
    (tmp_path / "a.raw").write_bytes(VOXELS.tobytes())
    (tmp_path / "a.mha").write_bytes(content)
    with pytest.raises(InputError, match=r"^a\.mha keeps its voxels in another file; save it as one file \(\.mha\)\.$"):
        read_volume(tmp_path / "a.mha")


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("sizes", [b"4 5 7", b"4 5 5"])
def test_too_few_or_too_many_voxels(tmp_path: Path, compress: bool, sizes: bytes) -> None:
    content = _itk_bytes(tmp_path / "a.mha", VOXELS, compress).replace(b"DimSize = 4 5 6", b"DimSize = " + sizes)
    (tmp_path / "a.mha").write_bytes(content)
    if sizes == b"4 5 5" and not compress:  # Bytes after the voxels are ignored.
        np.testing.assert_array_equal(read_volume(tmp_path / "a.mha").voxels, VOXELS.T[..., :5])
        return
    with pytest.raises(InputError, match=r"^a\.mha cannot be read .*(fewer|more) voxels than its header says"):
        read_volume(tmp_path / "a.mha")


@pytest.mark.parametrize("message", [b"0", b"5", b"99999999999", b"-1"])
def test_wrong_size_of_compressed_voxels_is_refused(tmp_path: Path, message: bytes) -> None:
    """If the size is too small, ITK reads uninitialised memory as voxels."""
    content = _itk_bytes(tmp_path / "a.mha", VOXELS, compress=True)
    (tmp_path / "a.mha").write_bytes(re.sub(rb"CompressedDataSize = \d+", b"CompressedDataSize = " + message, content))
    with pytest.raises(InputError, match="its CompressedDataSize is not that of its voxels"):
        read_volume(tmp_path / "a.mha")


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    for compress in (False, True):
        content = _itk_bytes(tmp_path / "a.mha", VOXELS, compress)
        for length in (0, 100, len(content) - 1):
            (tmp_path / "a.mha").write_bytes(content[:length])
            with pytest.raises(InputError, match=r"^a\.mha cannot be read"):
                read_volume(tmp_path / "a.mha")


@pytest.mark.parametrize("line", [b"Offset = 1 2", b"DimSize = 4 5", b"ElementSpacing = 1", b"TransformMatrix = x"])
def test_incomplete_fields_are_refused(tmp_path: Path, line: bytes) -> None:
    content = _itk_bytes(tmp_path / "a.mha", VOXELS)
    (tmp_path / "a.mha").write_bytes(re.sub(line.partition(b"=")[0] + b"=.*", line, content))
    with pytest.raises(InputError, match=r"^a\.mha cannot be read"):
        read_volume(tmp_path / "a.mha")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"MET_SHORT", b"MET_FLOAT_ARRAY"),
        (b"BinaryData = True", b"BinaryData = False"),
        (b"ObjectType", b"HeaderSize = 9\n"),
    ],
)
def test_error_names_unsupported_content(tmp_path: Path, old: bytes, new: bytes) -> None:
    content = re.sub(old, new, _itk_bytes(tmp_path / "a.mha", VOXELS), count=1)
    (tmp_path / "a.mha").write_bytes(content)
    with pytest.raises(InputError, match=r"^a\.mha holds voxels of type .* save it with binary voxels"):
        read_volume(tmp_path / "a.mha")


def test_several_values_or_time_points_are_refused(tmp_path: Path) -> None:
    _itk_bytes(tmp_path / "two.mha", np.zeros((6, 5, 4, 2), np.int16), colour=True)
    with pytest.raises(InputError, match=r"two\.mha holds 2 values for each voxel"):
        read_volume(tmp_path / "two.mha")
    _itk_bytes(tmp_path / "deep.mha", np.zeros((6, 5, 4, 3), np.int16), colour=True)
    with pytest.raises(InputError, match=r"deep\.mha holds colours of type int16"):
        read_volume(tmp_path / "deep.mha")
    _itk_bytes(tmp_path / "time.mha", np.zeros((2, 6, 5, 4), np.int16))
    with pytest.raises(InputError, match="4 dimensions"):
        read_volume(tmp_path / "time.mha")
    _itk_bytes(tmp_path / "once.mha", VOXELS[None])
    volume = read_volume(tmp_path / "once.mha")
    assert volume.same_geometry(Volume(VOXELS.T, np.diag([-1.0, -1, 1, 1])))
