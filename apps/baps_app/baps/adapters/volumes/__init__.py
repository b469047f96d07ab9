"""Adapt a 3D black box: the part of the volume that it is shown, a tone curve on it, and a head on its answers."""
