"""Images and labels on disk: NIfTI, NRRD, DICOM, and pictures (PNG, JPEG, TIFF, NPZ)."""

from .dicom import is_dicom_folder, read_patient
from .labels import label_stem, read_label_map, read_labels, write_label_map
from .listing import images_folder, list_images
from .nifti import write_nifti
from .nrrd import write_nrrd
from .reading import IMAGE_SUFFIXES, file_stem, read_volume

__all__ = [
    "IMAGE_SUFFIXES",
    "file_stem",
    "images_folder",
    "is_dicom_folder",
    "label_stem",
    "list_images",
    "read_label_map",
    "read_labels",
    "read_patient",
    "read_volume",
    "write_label_map",
    "write_nifti",
    "write_nrrd",
]
