"""From a click at a voxel to a label that is trained on: all lies where the image's own header puts the anatomy.

The header is read as its writer meant it, and what the server hands out by SimpleITK, which 3D Slicer is built on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from baps.blackbox import load_black_box
from baps.evaluation.cases import CaseReader
from baps.inference.segmenter import Segmenter
from baps.registry.store import AdapterStore
from baps.server.datastores.folder import StudiesDatastore
from baps.server.infer.prompted import PromptedInfer
from baps.server.labels.save_labels import save_label
from baps.server.training_cases import labelled_cases
from stress.fuzz.displacements import Slice, write_enhanced, write_series

SITE = {"ball": 1}
KINDS = ("series", "enhanced", "nifti")


@dataclass(frozen=True)
class Scanned:
    """A bright ball in a dark volume, as a scanner saw it.

    Attributes:
        kind: of file.
        angles: of the scanner's axes, degrees.
        spacing: of rows and of columns, mm.
        step: from slice to slice, mm.
        tilt: of the gantry, mm a slice along the rows and the columns.
        order: in which the slices are stored.
        slope: of every second slice.
        unit: of a NIfTI.
        codes: of its sform and qform; the sform lies elsewhere where the qform counts.
    """

    kind: str
    angles: tuple[float, float, float]
    spacing: tuple[float, float]
    step: float
    tilt: tuple[float, float]
    order: tuple[int, ...]
    slope: float
    unit: str
    codes: tuple[int, int]


scans = st.builds(
    Scanned,
    kind=st.sampled_from(KINDS),
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.7, 1.4)] * 2),
    step=st.floats(1.5, 4),
    tilt=st.tuples(*[st.floats(-1.2, 1.2)] * 2),
    order=st.permutations(range(7)).map(tuple),
    slope=st.sampled_from([1.0, 0.5]),
    unit=st.sampled_from(["mm", "micron", "meter"]),
    codes=st.sampled_from([(1, 1), (0, 1), (2, 1), (1, 0)]),
)


def _write(scan: Scanned, folder: Path) -> tuple[Path, NDArray[np.float64]]:
    """Write the image; its path, and the middle of the ball, mm, LPS."""
    axes = Rotation.from_euler("xyz", scan.angles, degrees=True).as_matrix().T
    tilt = scan.tilt if scan.kind == "series" else (0.0, 0.0)
    along = scan.step * axes[2] + tilt[0] * axes[0] + tilt[1] * axes[1]
    origin, (rows, columns) = np.array([-31.0, 12.0, 47.0]), np.mgrid[:40, :36]
    within = columns[..., None] * scan.spacing[1] * axes[0] + rows[..., None] * scan.spacing[0] * axes[1]
    middle = origin + 3 * along + 19 * scan.spacing[1] * axes[0] + 17 * scan.spacing[0] * axes[1]
    slices = []
    for k in range(7):
        there = origin + k * along + within
        values = np.where(np.linalg.norm(there - middle, axis=-1) < 8, 200, 20)
        slope = scan.slope if k % 2 and scan.kind != "nifti" else 1.0
        stored = (values / slope).astype(np.int16)
        slices.append(Slice(stored, origin + k * along, axes[:2], scan.spacing, slope))
    ordered = [slices[k] for k in scan.order]
    if scan.kind == "series":
        write_series(folder / "scan", ordered)
        return folder / "scan", middle
    if scan.kind == "enhanced":
        write_enhanced(folder / "scan.dcm", ordered, np.random.default_rng(0))
        return folder / "scan.dcm", middle
    affine = np.eye(4)
    affine[:3, :3] = np.stack([axes[0] * scan.spacing[1], axes[1] * scan.spacing[0], axes[2] * scan.step], 1)
    affine[:3, 3] = origin
    factor = {"mm": 1, "micron": 1000, "meter": 0.001}[scan.unit]
    ras = np.diag([-1.0, -1, 1, 1]) @ affine
    ras[:3] *= factor
    elsewhere = ras + np.pad([[5.0 * factor]] * 3, ((0, 1), (3, 0)))
    sform, qform = scan.codes
    image = nibabel.Nifti1Image(np.stack([piece.values.T for piece in slices], -1), ras)
    image.set_sform(elsewhere if sform == 2 else ras, sform)
    image.set_qform(ras, qform)
    image.header.set_xyzt_units(scan.unit)
    nibabel.save(image, folder / "scan.nii.gz")
    return folder / "scan.nii.gz", middle


@pytest.fixture(scope="module")
def infer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PromptedInfer]:
    folder = tmp_path_factory.mktemp("infer")
    segmenter = Segmenter(load_black_box("bundled"), AdapterStore(folder / "adapters"))
    yield PromptedInfer(lambda: segmenter, folder / "clicks", SITE, lambda *_: "", adapted=True)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scan=scans)
def test_a_click_becomes_a_label_at_the_same_place(
    scan: Scanned, infer: PromptedInfer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("studies")
    _, middle = _write(scan, folder)
    datastore = StudiesDatastore(str(folder), auto_reload=False, read_only=False)
    shown = SimpleITK.ReadImage(datastore.get_image_uri("scan"))
    voxel = shown.TransformPhysicalPointToIndex(middle)
    assert shown[voxel] == 200

    file, reply = infer({"image": datastore.get_image_uri("scan"), "label": "ball", "foreground": [list(voxel)]})
    assert reply["slice"] == voxel[2]
    mask = SimpleITK.ReadImage(file)
    assert mask.GetSize() == shown.GetSize()
    corner = [size - 1 for size in mask.GetSize()]
    for place in ([0, 0, 0], corner, list(voxel)):
        off = np.subtract(mask.TransformIndexToPhysicalPoint(place), shown.TransformIndexToPhysicalPoint(place))
        assert np.abs(off).max() < 0.05
    assert mask[mask.TransformPhysicalPointToIndex(middle)] == 1

    sent = folder / "sent"
    sent.mkdir()
    SimpleITK.WriteImage(mask, str(sent / "label.nrrd"))  # As 3D Slicer does.
    info = {"label_info": [{"name": "ball", "idx": 1}]}
    save_label(datastore, SITE, "scan", sent / "label.nrrd", "final", info)
    assert datastore.get_labeled_images() == ["scan"]
    cases, skipped = labelled_cases(datastore, SITE, {})
    assert not skipped
    volume, organ, _ = CaseReader().read(cases["ball"][0])
    np.testing.assert_array_equal(organ, SimpleITK.GetArrayFromImage(mask).swapaxes(0, 2) > 0)
    there = np.linalg.solve(volume.affine, np.append(middle * [-1, -1, 1], 1.0))[:3]
    assert organ[tuple(np.rint(there).astype(int))]
    assert volume.voxels[tuple(np.rint(there).astype(int))] == 200
