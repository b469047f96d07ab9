"""The infer tasks of MONAI Label: clicks, scribbles and whole organs."""
