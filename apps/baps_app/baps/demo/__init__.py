"""The demo: the main job from end to end, on phantoms, through the client that 3D Slicer uses."""
