"""Read and write images and labels: NIfTI, NRRD, MetaImage, DICOM, and pictures (PNG, JPEG, TIFF, NPZ)."""

from baps.io.dicom.stacks import STRAIGHTENED_NOTE
from baps.io.dicom.volumes import (
    VOLUME_INFIX,
    SeveralVolumesError,
    is_dicom_folder,
    read_dicom,
    read_each_volume,
    read_patient,
    volume_id,
)
from baps.io.labels import label_stem, read_label_map, read_labels, write_label_map
from baps.io.listing import images_folder, list_images
from baps.io.nifti import read_nifti_notes, write_nifti
from baps.io.nrrd import write_nrrd
from baps.io.reading import IMAGE_SUFFIXES, file_stem, is_picture, read_geometry, read_volume
from baps.io.viewer_formats import opens_in_viewers
from baps.io.writing import writable_suffix, write_volume

__all__ = [
    "IMAGE_SUFFIXES",
    "STRAIGHTENED_NOTE",
    "VOLUME_INFIX",
    "SeveralVolumesError",
    "file_stem",
    "images_folder",
    "is_dicom_folder",
    "is_picture",
    "label_stem",
    "list_images",
    "opens_in_viewers",
    "read_dicom",
    "read_each_volume",
    "read_geometry",
    "read_label_map",
    "read_labels",
    "read_nifti_notes",
    "read_patient",
    "read_volume",
    "volume_id",
    "writable_suffix",
    "write_label_map",
    "write_nifti",
    "write_nrrd",
    "write_volume",
]
