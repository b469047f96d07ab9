"""Choose the devices that a model runs on."""

from __future__ import annotations

import re

import torch

from baps.errors import InputError

_MAX_REPLICAS = 64


def usable_device(device: str) -> str:
    """Return a device as torch names it; ``auto`` is the GPU if there is one.

    Args:
        device: ``auto``, ``cpu``, ``cuda``, or a numbered GPU such as ``cuda:1``. Of several, separated by commas, the
            first counts.

    Returns:
        The name of the device.

    Raises:
        InputError: if a name is unknown, or there is no usable GPU.
    """
    return usable_devices(device)[0]


def usable_devices(devices: str) -> list[str]:
    """Return the devices of the replicas of a model as torch names them.

    Args:
        devices: one device as for ``usable_device``, or several, separated by commas: ``cuda:0,cuda:1``.

    Returns:
        The names of the devices, of which some may be equal.

    Raises:
        InputError: if a name is unknown, there is no usable GPU, or there are too many.
    """
    return [_usable(name) for name in device_names(devices)]


def device_names(devices: str) -> list[str]:
    """Split the names of devices, and check how they are written, but not whether these devices are here.

    Args:
        devices: as for ``usable_devices``.

    Returns:
        The names.

    Raises:
        InputError: if a name is unknown, or there are too many.
    """
    names = [name.strip() for name in devices.split(",")]
    if len(names) > _MAX_REPLICAS:
        raise InputError(f"The setting device names {len(names)} replicas; up to {_MAX_REPLICAS} are possible.")
    for name in names:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
            raise InputError(
                f"There is no device {name!r}. Known ones: auto, cpu, cuda, cuda:1 and so on, or several, as in "
                "cuda:0,cuda:1."
            )
    return names


def _usable(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"The device {device} was requested, but there is no usable GPU. Use device auto or cpu.")
    return device
