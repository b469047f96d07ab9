"""Load a 3D black box by its name."""

from __future__ import annotations

from pathlib import Path

from baps.blackbox.choices import VOLUME_BLACK_BOXES
from baps.blackbox.device import usable_device
from baps.blackbox.volumes.bundled import load_bundled_volume_model
from baps.blackbox.volumes.interface import VolumeBlackBox
from baps.blackbox.volumes.nninteractive import NnInteractiveBlackBox
from baps.blackbox.volumes.settings import VolumeRemoteSettings
from baps.errors import InputError


def load_volume_black_box(
    name: str,
    remote: VolumeRemoteSettings | None = None,
    identity: str = "",
    known: Path | None = None,
    device: str = "auto",
) -> VolumeBlackBox:
    """Load a 3D black box.

    Args:
        name: ``bundled3d`` for the small model that comes with the project, or ``nninteractive`` for a model behind an
            nninteractive-server.
        remote: settings of the server; required for ``nninteractive``.
        identity: the identity that the model must have, or "" for any.
        known: file of the models behind servers that are known, see ``baps.blackbox.volumes.identity``, or None.
        device: where ``bundled3d`` runs: ``auto``, ``cpu``, ``cuda``, or a numbered GPU such as ``cuda:1``.

    Returns:
        The black box.

    Raises:
        InputError: on an unknown name, or a model that cannot be used.
        BapsError: if a server is not there, or the packages of an extra are not installed.
    """
    if name not in VOLUME_BLACK_BOXES:
        raise InputError(f"There is no 3D black box named {name!r}. Known ones: {', '.join(VOLUME_BLACK_BOXES)}.")
    if name == "bundled3d":
        return load_bundled_volume_model(device=usable_device(device), sha256=identity)
    return _nninteractive(remote, identity, known)


def _nninteractive(remote: VolumeRemoteSettings | None, identity: str, known: Path | None) -> VolumeBlackBox:
    if remote is None:
        raise InputError(
            "The 3D black box nninteractive needs an address: give one such as http://host:1527 (volume_remote)."
        )
    return NnInteractiveBlackBox(remote, identity, known)
