"""Promptable models behind one interface, see ``interface``. What is imported from here is loaded when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from baps.blackbox.choices import BLACK_BOXES
    from baps.blackbox.interface import BlackBox, Capabilities, Encoding, model_seconds
    from baps.blackbox.loading import load_black_box
    from baps.blackbox.remote.settings import RemoteSettings
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

_PLACES = {
    "BLACK_BOXES": "baps.blackbox.choices",
    "Prompt": "baps.prompts",
    "RemoteSettings": "baps.blackbox.remote.settings",
    "load_black_box": "baps.blackbox.loading",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: settings and help texts need no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_PLACES.get(name, "baps.blackbox.interface")), name)
    return value
