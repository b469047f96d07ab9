"""Promptable models behind one interface. See ``interface``."""

from .interface import BlackBox, Capabilities, Encoding, model_seconds
from .loading import BLACK_BOXES, load_black_box
from .prompt import Prompt
from .remote import RemoteSettings

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
