"""What a model runs on."""

from __future__ import annotations

import re

import torch

from baps.errors import InputError


def usable_device(device: str) -> str:
    """A device as torch names it: ``auto`` is the GPU where there is one.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        InputError: on another name, or if there is no usable GPU.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise InputError(f"There is no device {device!r}. Known ones: auto, cpu, cuda, cuda:1 and so on.")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"The device {device} was asked for, but there is no usable GPU. Use device auto or cpu.")
    return device
