"""Promptable models behind one interface. See ``interface``."""

from .interface import BlackBox, Capabilities, Encoding
from .loading import BLACK_BOXES, load_black_box
from .prompt import Prompt

__all__ = ["BLACK_BOXES", "BlackBox", "Capabilities", "Encoding", "Prompt", "load_black_box"]
