"""The demo: the whole workflow on phantoms, through the client that 3D Slicer uses."""
