"""Adapt 3D black boxes."""
