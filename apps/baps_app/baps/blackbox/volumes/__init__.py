"""Black boxes that answer prompts in 3D: the interface, the bundled model, and nnInteractive's servers."""

from .interface import VolumeBlackBox, VolumeCapabilities

__all__ = ["VolumeBlackBox", "VolumeCapabilities"]
