"""Read the numpy scalars of checkpoints, such as the ``best_acc`` that training code saves beside the weights.

``torch.load(weights_only=True)`` refuses the names under which numpy pickles a scalar. They are admitted here, but for
the functions of this module, which read one number of a plain type: numpy's own would also read objects.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
_ORDERS = ("<", ">", "|", "=")

_admitting = threading.Lock()
"""Held while the names are admitted, because torch keeps the admitted names of a process in one set."""


class _Dtype:
    """The type of a scalar, as ``numpy.dtype`` is pickled.

    Args:
        code: kind and number of bytes.
        *options: numpy's other arguments, which do not change a plain type.
    """

    def __init__(self, code: str, *options: bool) -> None:
        if code not in _CODES:
            raise ValueError(f"{code!r} is not the type of a number")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in _ORDERS:
            raise ValueError(f"{state[1]!r} is not a byte order")
        self.order = state[1]


def _scalar(dtype: _Dtype, data: bytes) -> bool | int | float:
    """Read a scalar, as ``numpy.core.multiarray.scalar`` is called."""
    numbers = np.frombuffer(data, dtype.order + dtype.code)
    if len(numbers) != 1:
        raise ValueError(f"{len(numbers)} numbers are not a scalar")
    number: bool | int | float = numbers[0].item()
    return number


@contextmanager
def admit_numpy_scalars() -> Iterator[None]:
    """Let ``torch.load(weights_only=True)`` read numpy scalars, as Python numbers, inside the block.

    torch 2.5 has no names for admitted functions; there, a file with a numpy scalar is refused.

    Yields:
        Nothing.
    """
    scalars: list[Any] = [(_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    with _admitting, torch.serialization.safe_globals([*scalars, (_Dtype, "numpy.dtype")]):
        yield
