"""Read and write DICOM: images, segmentations and structure sets."""
