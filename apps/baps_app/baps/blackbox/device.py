"""Choose the device that a model runs on."""

from __future__ import annotations

import re

import torch

from baps.errors import InputError


def usable_device(device: str) -> str:
    """Return a device as torch names it; ``auto`` is the GPU if there is one.

    Args:
        device: ``auto``, ``cpu``, ``cuda``, or a numbered GPU such as ``cuda:1``.

    Returns:
        The name of the device.

    Raises:
        InputError: if the name is unknown, or there is no usable GPU.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise InputError(f"There is no device {device!r}. Known ones: auto, cpu, cuda, cuda:1 and so on.")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"The device {device} was requested, but there is no usable GPU. Use device auto or cpu.")
    return device
