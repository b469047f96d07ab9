from __future__ import annotations

import bz2
import gzip
from pathlib import Path

import nrrd
import numpy as np
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.io import read_volume, write_nrrd


def test_nrrd_is_written_in_lps(tmp_path: Path, placed_volume: Volume) -> None:
    write_nrrd(tmp_path / "a.nrrd", placed_volume)
    header = nrrd.read_header(str(tmp_path / "a.nrrd"))
    assert header["space"] == "left-posterior-superior"
    assert header["encoding"] == "gzip"
    np.testing.assert_allclose(header["space origin"], (-10, 20, 30))
    np.testing.assert_allclose(header["space directions"], np.diag([0.7, -0.8, 2.5]))
    write_nrrd(tmp_path / "b.nrrd", placed_volume, compress=False)
    assert nrrd.read_header(str(tmp_path / "b.nrrd"))["encoding"] == "raw"


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("right-anterior-superior", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
        ("left-posterior-superior", (-1, -1, 1)),
        ("RAS", (1, 1, 1)),
        ("LAS", (-1, 1, 1)),
        ("LPS", (-1, -1, 1)),
    ],
)
def test_spaces_of_nrrd_are_converted(
    tmp_path: Path, space: str, signs: tuple[int, int, int], placed_volume: Volume
) -> None:
    affine = np.diag([*signs, 1]) @ placed_volume.affine
    header = {"space": space, "space directions": affine[:3, :3].T, "space origin": affine[:3, 3]}
    nrrd.write(str(tmp_path / "a.nrrd"), placed_volume.voxels, header)
    np.testing.assert_allclose(read_volume(tmp_path / "a.nrrd").affine, placed_volume.affine)


def test_a_trailing_dimension_of_one_is_accepted_in_nrrd(tmp_path: Path, placed_volume: Volume) -> None:
    directions = np.vstack([placed_volume.affine[:3, :3].T, [np.nan] * 3])
    header = {
        "space": "right-anterior-superior",
        "space directions": directions,
        "space origin": placed_volume.affine[:3, 3],
        "kinds": ["domain", "domain", "domain", "list"],
    }
    nrrd.write(str(tmp_path / "a.nrrd"), placed_volume.voxels[..., None], header)
    again = read_volume(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(again.voxels, placed_volume.voxels)
    np.testing.assert_allclose(again.affine, placed_volume.affine)


def test_truncated_raw_nrrd_is_refused(tmp_path: Path, placed_volume: Volume) -> None:
    path = tmp_path / "cut.nrrd"
    write_nrrd(path, placed_volume, compress=False)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match="cut.nrrd"):
        read_volume(path)


def test_four_dimensions_are_refused(tmp_path: Path) -> None:
    header = {
        "space": "right-anterior-superior",
        "space directions": np.vstack([[np.nan] * 3, np.eye(3)]),
        "space origin": np.zeros(3),
        "kinds": ["list", "domain", "domain", "domain"],
    }
    nrrd.write(str(tmp_path / "a.nrrd"), np.zeros((2, 4, 5, 6), np.int16), header)
    with pytest.raises(InputError, match="4 dimensions"):
        read_volume(tmp_path / "a.nrrd")


@pytest.mark.parametrize("header", [{}, {"spacings": [1, 2, 3]}, {"space": "LPS", "space directions": np.eye(3)}])
def test_nrrd_without_an_affine_is_refused(tmp_path: Path, header: dict[str, object]) -> None:
    nrrd.write(str(tmp_path / "a.nrrd"), np.zeros((3, 4, 5), np.int16), header)
    with pytest.raises(InputError, match=r"a\.nrrd has no affine \(space, space directions and space origin\)"):
        read_volume(tmp_path / "a.nrrd")


@pytest.mark.parametrize("space", ["right-anterior-superior-time", "scanner-xyz-time"])
def test_space_unknown_to_viewers_is_refused(tmp_path: Path, space: str) -> None:
    header = {"space": space, "space directions": np.eye(3, 4), "space origin": np.zeros(4)}
    nrrd.write(str(tmp_path / "a.nrrd"), np.zeros((3, 4, 5), np.int16), header)
    with pytest.raises(InputError, match=f"a.nrrd lies in the space '{space}', which viewers do not know"):
        read_volume(tmp_path / "a.nrrd")


@given(
    space=st.sampled_from(
        ["right-anterior-superior", "RAS", "left-anterior-superior", "LAS", "left-posterior-superior", "LPS",
         "scanner-xyz", "3D-right-handed", "3D-left-handed", 3, 2]
    ),
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    steps=st.tuples(*[st.floats(0.3, 6)] * 3),
    sign=st.sampled_from([-1, 1]),
    kind=st.sampled_from(["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]),
    encoding=st.sampled_from(["raw", "gzip", "ascii"]),
)  # fmt: skip
def test_geometry_equals_that_of_itk(
    tmp_path_factory: pytest.TempPathFactory, space: str | int, angles: tuple[float, ...], steps: tuple[float, ...],
    sign: int, kind: str, encoding: str,
) -> None:  # fmt: skip
    path = tmp_path_factory.mktemp("nrrd") / "a.nrrd"
    dimensions = 2 if space == 2 else 3
    directions = (Rotation.from_euler("xyz", (0, 0, angles[2]) if space == 2 else angles).as_matrix() * steps * sign).T
    header = {
        "space" if isinstance(space, str) else "space dimension": space,
        "space directions": directions[:dimensions, :dimensions],
        "space origin": np.array([10.5, -20, 30])[:dimensions],
        "encoding": encoding,
    }
    voxels = np.random.default_rng(0).integers(0, 99, (4, 5, 6)[:dimensions]).astype(kind)
    nrrd.write(str(path), voxels, header)
    volume, itk_image = read_volume(path), SimpleITK.ReadImage(str(path))
    np.testing.assert_array_equal(volume.voxels, voxels.reshape(volume.shape))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(itk_image).T, voxels)
    for index in ((0, 0, 0), (3, 4, 5), (0, 4, 0)):
        x, y, *z = itk_image.TransformIndexToPhysicalPoint(index[:dimensions])
        expected = (-x, -y, *z) if z else (-x, -y, index[2])
        np.testing.assert_allclose((volume.affine @ (*index, 1))[:3], expected, atol=1e-6)


def test_a_slice_in_space_is_1_mm_thick(tmp_path: Path, placed_volume: Volume) -> None:
    directions = placed_volume.affine[:3, :2].T
    header = {"space": "RAS", "space directions": directions, "space origin": placed_volume.affine[:3, 3]}
    nrrd.write(str(tmp_path / "a.nrrd"), placed_volume.voxels[..., 0], header)
    volume = read_volume(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(volume.voxels, placed_volume.voxels[..., :1])
    np.testing.assert_allclose(volume.affine[:, [0, 1, 3]], placed_volume.affine[:, [0, 1, 3]])
    assert volume.spacing == pytest.approx((0.7, 0.8, 1))


@pytest.mark.parametrize(("field", "message"), [("encoding", "hex"), ("type", "block")])
def test_error_names_unsupported_content(tmp_path: Path, field: str, message: str, placed_volume: Volume) -> None:
    write_nrrd(tmp_path / "a.nrrd", placed_volume, compress=False)
    header, _, voxels = (tmp_path / "a.nrrd").read_bytes().partition(b"\n\n")
    lines = [
        f"{field}: {message}".encode() if line.startswith(field.encode()) else line for line in header.split(b"\n")
    ]
    (tmp_path / "a.nrrd").write_bytes(b"\n".join(lines) + b"\n\n" + voxels)
    with pytest.raises(InputError, match=f"^a.nrrd holds .*{message}.*; save numbers, as raw or gzip"):
        read_volume(tmp_path / "a.nrrd")


def test_singular_affine_is_refused(tmp_path: Path) -> None:
    header = {
        "space": "right-anterior-superior",
        "space directions": np.diag([1.0, 1.0, 0.0]),
        "space origin": np.zeros(3),
    }
    nrrd.write(str(tmp_path / "a.nrrd"), np.zeros((3, 4, 5), np.int16), header)
    with pytest.raises(InputError, match="inverted"):
        read_volume(tmp_path / "a.nrrd")


@pytest.mark.parametrize("sizes", [(1, 1, 1e200), (1, 1, 1e-7), (1e8, 1, 1), (1, 1e30, 1e-30)])
def test_implausible_voxel_sizes_are_refused(tmp_path: Path, sizes: tuple[float, float, float]) -> None:
    header = {"space": "LPS", "space directions": np.diag(sizes), "space origin": np.zeros(3)}
    nrrd.write(str(tmp_path / "a.nrrd"), np.zeros((3, 4, 5), np.int16), header)
    with pytest.raises(InputError, match="inverted"):
        read_volume(tmp_path / "a.nrrd")


def test_nearly_parallel_directions_are_refused(tmp_path: Path) -> None:
    directions = np.array([[1e4, 0, 0], [1e4, 1e-3, 0], [0, 0, 1e4]])
    header = {"space": "LPS", "space directions": directions, "space origin": np.zeros(3)}
    nrrd.write(str(tmp_path / "a.nrrd"), np.zeros((3, 4, 5), np.int16), header)
    with pytest.raises(InputError, match="inverted"):
        read_volume(tmp_path / "a.nrrd")


@pytest.mark.parametrize("kind", ["RGB-color", "vector"])
@pytest.mark.parametrize("axis", [0, 3])
def test_colour_is_read(tmp_path: Path, axis: int, kind: str) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3)).astype(np.uint8)
    kinds = ["domain"] * 3
    kinds.insert(axis, kind)
    header = {
        "space": "right-anterior-superior",
        "space directions": np.insert(np.diag([0.5, 0.6, 2.0]), axis, np.nan, axis=0),
        "space origin": np.zeros(3),
        "kinds": kinds,
    }
    nrrd.write(str(tmp_path / "a.nrrd"), np.moveaxis(colours, -1, axis), header)
    volume = read_volume(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(volume.voxels, colours)
    assert volume.spacing == pytest.approx((0.5, 0.6, 2.0))


def test_an_axis_of_three_time_points_is_not_colour(tmp_path: Path) -> None:
    header = {
        "space": "right-anterior-superior",
        "space directions": np.vstack([[np.nan] * 3, np.eye(3)]),
        "space origin": np.zeros(3),
        "kinds": ["list", "domain", "domain", "domain"],
    }
    nrrd.write(str(tmp_path / "a.nrrd"), np.zeros((3, 4, 5, 6), np.uint8), header)
    with pytest.raises(InputError, match="4 dimensions"):
        read_volume(tmp_path / "a.nrrd")


@pytest.mark.parametrize("field", ["data file: ", "datafile: ", "data file:=", "datafile:  "])
@pytest.mark.parametrize("relative", [False, True])
def test_voxels_in_another_file_are_refused(tmp_path: Path, field: str, relative: bool, placed_volume: Volume) -> None:
    """Otherwise an uploaded image could read any file of the server, or block it forever."""
    secret = tmp_path / "secret"
    write_nrrd(tmp_path / "a.nrrd", placed_volume, compress=False)
    header, _, voxels = (tmp_path / "a.nrrd").read_bytes().partition(b"\n\n")
    secret.write_bytes(voxels)
    (tmp_path / "a.nrrd").write_bytes(header + f"\n{field}{secret.name if relative else secret}\n\n".encode())
    with pytest.raises(InputError, match=r"^a\.nrrd keeps its voxels in another file; save it as one file\.$"):
        read_volume(tmp_path / "a.nrrd")


@pytest.mark.parametrize("field", ["line skip: -1", "byte skip: -2", "byte skip: 9999999", "line skip: x"])
@pytest.mark.parametrize("compress", [False, True])
def test_unsupported_skips_are_refused(tmp_path: Path, field: str, compress: bool, placed_volume: Volume) -> None:
    write_nrrd(tmp_path / "a.nrrd", placed_volume, compress)
    header, _, voxels = (tmp_path / "a.nrrd").read_bytes().partition(b"\n\n")
    (tmp_path / "a.nrrd").write_bytes(header + f"\n{field}\n\n".encode() + voxels)
    with pytest.raises(InputError, match=r"^a\.nrrd cannot be read"):
        read_volume(tmp_path / "a.nrrd")


def test_gzip_file_is_the_raw_file_in_gzip(tmp_path: Path, placed_volume: Volume) -> None:
    write_nrrd(tmp_path / "raw.nrrd", placed_volume, compress=False)
    write_nrrd(tmp_path / "packed.nrrd", placed_volume, compress=False, gzip_file=True)
    assert gzip.decompress((tmp_path / "packed.nrrd").read_bytes()) == (tmp_path / "raw.nrrd").read_bytes()


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
def test_lines_are_skipped_before_and_bytes_after_decompression(tmp_path: Path, encoding: str) -> None:
    voxels = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
    header = (
        f"NRRD0004\ntype: uint8\ndimension: 3\nspace: left-posterior-superior\nsizes: 2 3 4\nencoding: {encoding}\n"
        "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nline skip: 1\nbyte skip: 5\n\n"
    )
    content = b"12345" + (" ".join(map(str, voxels.ravel())).encode() if encoding == "ascii" else voxels.tobytes())
    packed = {"gzip": gzip.compress, "bzip2": bz2.compress}.get(encoding, bytes)(content)
    (tmp_path / "a.nrrd").write_bytes(header.encode() + b"a line\n" + packed)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nrrd").voxels, voxels.T)
