"""Put promptable models behind one interface, see ``interface``. Names are imported when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from baps.blackbox.choices import BLACK_BOXES
    from baps.blackbox.interface import BlackBox, Capabilities, Encoding, Size, model_seconds
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
    "Size",
    "load_black_box",
    "model_seconds",
]

_MODULES = {
    "BLACK_BOXES": "baps.blackbox.choices",
    "Prompt": "baps.prompts",
    "RemoteSettings": "baps.blackbox.remote.settings",
    "load_black_box": "baps.blackbox.loading",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: settings and help texts do not need torch.

    Args:
        name: a name in ``__all__``.

    Returns:
        The imported object.

    Raises:
        AttributeError: if there is no such name.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES.get(name, "baps.blackbox.interface")), name)
    return value
