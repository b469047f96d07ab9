"""Read weights files: they are hashed before they are opened, and never unpickled."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from baps.blackbox.numpy_scalars import admit_numpy_scalars
from baps.errors import InputError

KNOWN_SHA256 = {
    "sam_vit_b_01ec64.pth": "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    "sam_vit_l_0b3195.pth": "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    "sam_vit_h_4b8939.pth": "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
}
"""SHA-256 of the published SAM checkpoints by file name."""


_NESTED = ("model", "state_dict", "net", "network_weights")
"""Keys under which training code saves the state dict, beside those of the optimiser and others."""


def sha256(path: Path) -> str:
    """Compute the SHA-256 of a file, once until the file changes.

    Args:
        path: path of the file.

    Returns:
        The hash in hexadecimal digits.
    """
    status = path.stat()
    return _sha256(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=16)
def _sha256(path: Path, _modified: int, _size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_sha256(path: Path, expected_sha256: str = "") -> str:
    """Check that a weights file is the expected one, before it is opened.

    Args:
        path: path of the file.
        expected_sha256: the hash that the operator expects, or "" for the published one of a file of this name.

    Returns:
        The SHA-256 of the file.

    Raises:
        InputError: if the file is missing, or has another hash.
    """
    if not path.is_file():
        raise InputError(f"The weights file {path} does not exist. Give the path of a checkpoint on this machine.")
    digest = sha256(path)
    expected = (expected_sha256 or KNOWN_SHA256.get(path.name, "")).lower()
    if expected and digest != expected:
        raise InputError(
            f"The weights file {path} has SHA-256 {digest}, but {expected} was expected. The download is broken or "
            "the file is another one: fetch it again, or give the hash that you trust."
        )
    return digest


def load_weights(path: Path, expected_sha256: str = "") -> tuple[dict[str, torch.Tensor], str]:
    """Read a state dict.

    Args:
        path: path of a .safetensors file, or of a .pth or .pt file that holds tensors and numbers only.
        expected_sha256: the hash that the operator expects, or "" for the published one of a file of this name.

    Returns:
        The state dict and the SHA-256 of the file.

    Raises:
        InputError: if the file is missing, has another hash, or is not a plain state dict.
    """
    digest = check_sha256(path, expected_sha256)
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            with admit_numpy_scalars():
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # The readers raise many types; each means that the file is not a checkpoint.
        raise InputError(
            f"The weights file {path} cannot be read as a plain state dict ({type(error).__name__}). "
            "Use a .safetensors file, or a .pth file that holds tensors and numbers and nothing else."
        ) from error
    parts: list[Any] = [state.get(name) for name in _NESTED] if isinstance(state, dict) else []
    state = next((part for part in parts if isinstance(part, dict)), state)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(
            f"The weights file {path} is not a state dict of tensors. Save model.state_dict() and use that."
        )
    return state, digest
