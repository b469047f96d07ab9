"""Make the sample data: phantom volumes with labels, and one DICOM series.

``python -m tools.sample_data`` writes ``ct/``, ``mr/`` and ``dicom/`` into ``sample-data/`` (``baps.demo.phantoms``).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from baps.demo.phantoms import AFFINE, LABELS, SPACING, write_cases
from baps.io import read_volume

__all__ = ["HERE", "LABELS", "generate", "write_dicom"]

HERE = Path(__file__).resolve().parents[1] / "sample-data"
CT_CASES, MR_CASES = 11, 3


def write_dicom(folder: Path, voxels: NDArray[np.int16], patient: str, seed: int) -> None:
    """Write one CT series, one file per slice, with the geometry of the phantoms.

    Args:
        folder: path of the folder of the series.
        voxels: voxels, (I, J, K).
        patient: PatientID.
        seed: seed of the UIDs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entropy = [f"baps sample {patient} {seed}"]
    study, series, frame = (
        pydicom.uid.generate_uid(entropy_srcs=[*entropy, part]) for part in ("study", "series", "frame")
    )
    for index in range(voxels.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[*entropy, str(index)])
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        image.is_little_endian, image.is_implicit_VR = True, False
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        image.PatientName, image.PatientID = "Phantom^Sample", patient
        image.PatientBirthDate, image.PatientSex = "", "O"
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
        image.StudyDate, image.StudyTime, image.AccessionNumber, image.StudyID = "20240101", "120000", "", "1"
        image.ReferringPhysicianName, image.Manufacturer = "", "BAPS sample-data/generate.py"
        image.Modality, image.SeriesNumber, image.InstanceNumber = "CT", 1, index + 1
        image.SeriesDescription, image.PatientPosition = "Phantom abdomen", "HFS"
        image.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
        position = [-AFFINE[0, 3], -AFFINE[1, 3], AFFINE[2, 3] + index * SPACING[2]]
        image.ImagePositionPatient = [f"{value:.4f}" for value in position]
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        image.PixelSpacing, image.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
        image.SliceLocation = f"{position[2]:.4f}"
        image.PositionReferenceIndicator, image.KVP, image.AcquisitionNumber = "", "120", 1
        image.Rows, image.Columns = voxels.shape[1], voxels.shape[0]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
        image.RescaleIntercept, image.RescaleSlope, image.RescaleType = 0, 1, "HU"
        image.WindowCenter, image.WindowWidth = 40, 400
        image.PixelData = np.ascontiguousarray(voxels[:, :, index].T).astype("<i2").tobytes()
        image.save_as(folder / f"{index + 1:03d}.dcm", write_like_original=False)


def generate(out: Path, seed: int = 0, ct_cases: int = CT_CASES, mr_cases: int = MR_CASES) -> None:
    """Write the volumes, their labels, and the first CT case as a DICOM series.

    Args:
        out: path of the folder to write to.
        seed: seed of the phantoms.
        ct_cases: number of CT volumes.
        mr_cases: number of MR volumes.
    """
    first, *_ = write_cases(out / "ct", "ct", ct_cases, seed)
    write_dicom(out / "dicom" / "ct_01", read_volume(first).voxels.astype(np.int16), "SAMPLE-CT-01", seed)
    list(write_cases(out / "mr", "mr", mr_cases, seed))


if __name__ == "__main__":
    generate(HERE)
    print(f"Wrote {CT_CASES} CT and {MR_CASES} MR phantoms and a DICOM series below {HERE}.")
