"""Serve the protocol of nnInteractive, which 3D Slicer, napari and others speak, with the site's model and adapters."""
