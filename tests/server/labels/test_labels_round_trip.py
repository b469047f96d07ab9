"""Segments of all supported programs are saved by the server and read by trainings, voxel by voxel."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from baps.errors import InputError
from baps.evaluation.cases import CaseReader
from baps.io import read_volume
from baps.io.dicom.labels import read_series_headers
from baps.io.dicom.rtstruct import write_structures
from baps.io.dicom.seg import write_segmentation
from baps.server.datastores.folder import StudiesDatastore
from baps.server.labels.save_labels import save_label, save_mask
from baps.server.training_cases import labelled_cases
from tests.support.small_series import random_segments, write_small_series

SITE = {"liver": 1, "spleen": 2, "kidney": 3, "aorta": 4}
WHEN = datetime(2026, 3, 1, tzinfo=timezone.utc)

Masks = dict[str, NDArray[np.bool_]]


class Study:
    """A folder of studies with one oblique series, also read by ITK."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.series = folder, folder / "studies" / "p1"
        write_small_series(self.series)
        self.datastore = StudiesDatastore(str(folder / "studies"), auto_reload=False, read_only=False)
        names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(self.series))
        self.itk = SimpleITK.ReadImage(names)  # GDCM sorts them by position.
        self.headers, self.image = read_series_headers(self.series), read_volume(self.series)

    def itk_label(self, voxels: NDArray[Any], vector: bool = False) -> SimpleITK.Image:
        """Return voxels (I, J, K[, C]) as an ITK image with the geometry of the series."""
        order = (2, 1, 0, 3)[: voxels.ndim]
        label = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels.transpose(order)), isVector=vector)
        label.SetSpacing(self.itk.GetSpacing())
        label.SetOrigin(self.itk.GetOrigin())
        label.SetDirection(self.itk.GetDirection())
        return label

    def trained_on(self) -> tuple[Masks, dict[str, str]]:
        """Return the masks that a training reads, and the reasons for labels that it skips."""
        cases, skipped = labelled_cases(self.datastore, SITE, {})
        masks = {name: CaseReader().read(case)[1] for name, of_organ in cases.items() for case in of_organ}
        return masks, skipped


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("place"))


def _flat(masks: Masks) -> NDArray[np.uint8]:
    """Return a label map. Later masks hide earlier ones, which are changed accordingly."""
    voxels = np.zeros(next(iter(masks.values())).shape, np.uint8)
    for name, mask in masks.items():
        voxels[mask] = SITE[name]
    for name in masks:
        masks[name] = voxels == SITE[name]
    return voxels


def _nibabel(study: Study, masks: Masks) -> tuple[Path, dict[str, int]]:
    """Write floats with a scaled header, and with reordered axes."""
    image = nibabel.Nifti1Image(_flat(masks).astype(np.float64), study.image.affine)
    image.set_data_dtype(np.int16)
    turned = image.as_reoriented(nibabel.orientations.axcodes2ornt(("S", "P", "L")))
    nibabel.save(turned, study.folder / "label.nii.gz")
    return study.folder / "label.nii.gz", SITE


def _itk_nrrd(study: Study, masks: Masks) -> tuple[Path, dict[str, int]]:
    SimpleITK.WriteImage(study.itk_label(_flat(masks)), study.folder / "label.nrrd")
    return study.folder / "label.nrrd", SITE


def _itk_channels(study: Study, masks: Masks) -> tuple[Path, dict[str, int]]:
    """Write one channel per class. Channels may overlap, and there is none for the background."""
    for mask in masks.values():
        mask[0, 0, 0] = False
    if len(masks) == 1:
        return _itk_nrrd(study, masks)
    label = study.itk_label(np.stack(list(masks.values()), -1).astype(np.uint8), vector=True)
    SimpleITK.WriteImage(label, study.folder / "label.nii.gz")
    return study.folder / "label.nii.gz", {name: n for n, name in enumerate(masks, start=1)}


def _slicer(study: Study, masks: Masks) -> tuple[Path, dict[str, int]]:
    """Write one layer per segment, all with value 1, cropped to the segments."""
    marked = np.logical_or.reduce(list(masks.values()))
    part = tuple(slice(int(where.min()), int(where.max()) + 1) for where in np.nonzero(marked))
    lps = np.diag([-1.0, -1, 1, 1]) @ study.image.affine
    header: dict[str, Any] = {
        "space": "left-posterior-superior",
        "space directions": np.vstack([np.full((1, 3), np.nan), lps[:3, :3].T]),
        "space origin": (lps @ [*(ends.start for ends in part), 1])[:3],
        "kinds": ["list", "domain", "domain", "domain"],
        "Segmentation_ReferenceImageExtentOffset": " ".join(str(ends.start) for ends in part),
    }
    for n, name in enumerate(masks):
        header |= {f"Segment{n}_Name": name, f"Segment{n}_Layer": str(n), f"Segment{n}_LabelValue": "1"}
    layers = np.stack([mask[part] for mask in masks.values()]).astype(np.uint8)
    nrrd.write(str(study.folder / "label.seg.nrrd"), layers, header)
    return study.folder / "label.seg.nrrd", {}


def _seg(study: Study, masks: Masks) -> tuple[Path, dict[str, int]]:
    label = write_segmentation(study.headers, study.image, masks, dict.fromkeys(masks, frozenset()), WHEN)
    label.save_as(study.folder / "label.dcm", write_like_original=False)
    return study.folder / "label.dcm", {}


def _structures(study: Study, masks: Masks) -> tuple[Path, dict[str, int]]:
    write_structures(study.headers, study.image, masks, WHEN).save_as(
        study.folder / "label.dcm", write_like_original=False
    )
    return study.folder / "label.dcm", {}


def _dcmqi(study: Study, masks: Masks) -> tuple[Path, dict[str, int]]:
    """Write one file per segment, as 3D Slicer exports them."""
    files, attributes = [], []
    for n, (name, mask) in enumerate(masks.items(), start=1):
        SimpleITK.WriteImage(study.itk_label(mask.astype(np.uint8)), study.folder / f"{n}.nrrd")
        files.append(str(study.folder / f"{n}.nrrd"))
        code = {"CodeValue": "123037004", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Anatomical Structure"}
        attributes.append(
            [{"labelID": 1, "SegmentLabel": name, "SegmentDescription": name, "SegmentAlgorithmType": "MANUAL",
              "SegmentedPropertyCategoryCodeSequence": code, "SegmentedPropertyTypeCodeSequence": code}]
        )  # fmt: skip
    (study.folder / "said.json").write_text(
        json.dumps(
            {"ContentCreatorName": "A", "SeriesDescription": "S", "SeriesNumber": "300", "InstanceNumber": "1",
             "ContentLabel": "SEGMENTATION", "ContentDescription": "x", "segmentAttributes": attributes}
        )
    )  # fmt: skip
    command = [Path(sys.executable).parent / "itkimage2segimage", "--inputImageList", ",".join(files), "--skip", "1"]
    command += ["--inputMetadata", study.folder / "said.json", "--inputDICOMDirectory", study.series]
    subprocess.run([*command, "--outputDICOM", study.folder / "label.dcm"], check=True, capture_output=True)
    return study.folder / "label.dcm", {}


WRITERS: dict[str, Callable[[Study, Masks], tuple[Path, dict[str, int]]]] = {
    "nibabel": _nibabel,
    "SimpleITK": _itk_nrrd,
    "SimpleITK, a channel each": _itk_channels,
    "3D Slicer": _slicer,
    "DICOM SEG": _seg,
    "RTSTRUCT": _structures,
    "dcmqi": _dcmqi,
}


@pytest.mark.parametrize("writer", WRITERS)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(seed=st.integers(0, 1 << 20))
def test_trainings_read_what_was_saved(study: Study, writer: str, seed: int) -> None:
    masks = dict(zip(SITE, random_segments(seed), strict=False))
    path, values = WRITERS[writer](study, masks)
    masks = {name: mask for name, mask in masks.items() if mask.any()}
    info = {
        "label_info": [{"name": name, "idx": idx} for name, idx in values.items() if name in masks],
        "author": "anna",
    }
    save_label(study.datastore, SITE, "p1", path, "final", info)
    trained, skipped = study.trained_on()
    assert skipped == {}
    for name, mask in masks.items():
        np.testing.assert_array_equal(trained[name], mask)
    assert study.datastore.get_labeled_images() == ["p1"]


@pytest.mark.parametrize("writer", ["3D Slicer", "DICOM SEG", "RTSTRUCT"])
def test_overlaps_survive_saves_of_other_annotators(tmp_path: Path, writer: str) -> None:
    """An organ of another annotator, and a mask of a model."""
    study = Study(tmp_path)
    masks = {"liver": random_segments(3)[0], "spleen": random_segments(3)[0].copy()}
    masks["spleen"][:5] = False
    path, _ = WRITERS[writer](study, masks)
    save_label(study.datastore, SITE, "p1", path, "final", {"author": "anna"})
    assert study.datastore.get_label_uri("p1", "final").endswith(path.name.removeprefix("label"))
    assert (
        Path(study.datastore.get_label_uri("p1", "final")).read_bytes() == path.read_bytes()
    )  # The file is unchanged.
    free = ~(masks["liver"] | masks["spleen"])
    kidney, aorta = free.copy(), free.copy()
    kidney[:9], aorta[9:] = False, False
    SimpleITK.WriteImage(study.itk_label(kidney.astype(np.uint8)), tmp_path / "ben.nii.gz")
    ben = {"author": "ben", "label_info": [{"name": "kidney", "idx": 1}]}
    save_label(study.datastore, SITE, "p1", tmp_path / "ben.nii.gz", "final", ben)
    image = read_volume(Path(study.datastore.get_image_uri("p1")))
    save_mask(study.datastore, SITE, "p1", image, "aorta", aorta, range(image.shape[2]), "organs", "carl")
    trained, skipped = study.trained_on()
    assert skipped == {}
    for name, mask in {**masks, "kidney": kidney, "aorta": aorta}.items():
        np.testing.assert_array_equal(trained[name], mask)
    authors = study.datastore.get_label_info("p1", "final")["authors"]
    assert authors == {"liver": "anna", "spleen": "anna", "kidney": "ben", "aorta": "carl"}
    assert Path(study.datastore.get_label_uri("p1", "final")).name == "p1.seg.nrrd"
    assert [file.name for file in (tmp_path / "studies" / "labels" / "final").iterdir()] == ["p1.seg.nrrd"]


def test_names_of_3d_slicer_segments_come_from_the_file_if_values_are_ambiguous(tmp_path: Path) -> None:
    """If several segments have one value, only the file can tell them apart."""
    study = Study(tmp_path)
    masks = {"liver": random_segments(3)[0], "spleen": random_segments(8)[0]}
    path, _ = _slicer(study, masks)
    info = {"label_info": [{"name": "spleen", "idx": 1}, {"name": "liver", "idx": 2}]}
    save_label(study.datastore, SITE, "p1", path, "final", info)
    trained, _ = study.trained_on()
    for name, mask in masks.items():
        np.testing.assert_array_equal(trained[name], mask)


@pytest.mark.parametrize("name", ["p1.seg.nrrd", "p1.dcm"])
def test_a_label_that_was_copied_into_the_folder_names_its_segments(tmp_path: Path, name: str) -> None:
    """Its values differ from those of the site."""
    study = Study(tmp_path)
    masks = {"spleen": random_segments(3)[0], "liver": random_segments(8)[0]}
    path, _ = (_slicer if name.endswith("nrrd") else _structures)(study, masks)
    shutil.copy(path, tmp_path / "studies" / "labels" / "final" / name)
    study.datastore.refresh()
    assert study.datastore.get_labeled_images() == ["p1"]
    trained, skipped = study.trained_on()
    assert skipped == {}
    assert trained.keys() == masks.keys()
    for organ, mask in masks.items():
        np.testing.assert_array_equal(trained[organ], mask)


def test_a_dicom_label_of_another_series_is_refused(tmp_path: Path) -> None:
    study, other = Study(tmp_path / "a"), Study(tmp_path / "b")
    path, _ = _structures(other, {"liver": random_segments(3)[0]})
    with pytest.raises(InputError, match="belongs to another series"):
        save_label(study.datastore, SITE, "p1", path, "final", {})
    assert study.datastore.get_labeled_images() == []
