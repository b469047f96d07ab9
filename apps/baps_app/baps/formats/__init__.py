"""Images and labels on disk."""

from .nifti import write_nifti
from .nrrd import write_nrrd
from .reading import read_labels, read_volume

__all__ = ["read_labels", "read_volume", "write_nifti", "write_nrrd"]
