"""The train tasks of MONAI Label: adapters of the black box, and of the organ model."""
