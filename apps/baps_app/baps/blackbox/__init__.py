"""Promptable models behind one interface. See ``interface``."""

from baps.blackbox.interface import BlackBox, Capabilities, Encoding, model_seconds
from baps.blackbox.loading import BLACK_BOXES, load_black_box
from baps.blackbox.remote.client import RemoteSettings
from baps.prompts import Prompt

__all__ = [
    "BLACK_BOXES",
    "BlackBox",
    "Capabilities",
    "Encoding",
    "Prompt",
    "RemoteSettings",
    "load_black_box",
    "model_seconds",
]
