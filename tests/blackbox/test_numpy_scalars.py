"""Files are written by ``torch.save`` and by hand-made pickles, as an attacker would write them."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from baps.blackbox.numpy_scalars import admit_numpy_scalars
from baps.blackbox.weights import load_weights
from baps.errors import InputError

STATE = {"layer.weight": torch.arange(6.0).view(2, 3)}

SCALARS = [np.float64(0.8125), np.float32(0.1), np.float16(0.5), np.int64(-7), np.uint8(200), np.bool_(True)]


def _load(path: Path) -> Any:
    with admit_numpy_scalars():
        return torch.load(path, weights_only=True)


@pytest.mark.parametrize("scalar", [*SCALARS, np.dtype(">f8").type(0.25)], ids=repr)
def test_scalars_are_read_as_numbers(scalar: np.generic, tmp_path: Path) -> None:
    torch.save({"best_acc": scalar}, tmp_path / "a.pt")
    result = _load(tmp_path / "a.pt")["best_acc"]
    assert result == scalar
    assert type(result) in (bool, int, float)


@pytest.mark.parametrize("core", ["core", "_core"])
def test_files_of_numpy_1_and_2_are_read(core: str, tmp_path: Path) -> None:
    """Either numpy names its functions differently, and reads only its own files itself."""
    torch.save({"best_acc": np.float32(0.75)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "a.pt").read_bytes()
    here = b"numpy.core.multiarray" if b"cnumpy.core.multiarray" in content else b"numpy._core.multiarray"
    assert here in content
    (tmp_path / "a.pt").write_bytes(content.replace(here, f"numpy.{core}.multiarray".encode()))
    assert _load(tmp_path / "a.pt")["best_acc"] == 0.75


@pytest.mark.parametrize("size", [1, 4])
def test_other_byte_orders_and_sizes(size: int, tmp_path: Path) -> None:
    class _Scalar:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return np.float64(0).__reduce__()[0], (np.dtype(">i2"), b"\1\2" * size)

    torch.save({"best_acc": _Scalar()}, tmp_path / "a.pt")
    if size == 1:
        assert _load(tmp_path / "a.pt")["best_acc"] == 0x0102
    else:
        with pytest.raises(Exception, match="4 numbers are not a scalar"):
            _load(tmp_path / "a.pt")


class _Probe:
    """Creates a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


OTHERS: dict[str, Callable[[Path], object]] = {
    "array": lambda folder: np.zeros(3),
    "object array": lambda folder: np.array([None], object),
    "text": lambda folder: np.str_("model"),
    "bytes": lambda folder: np.bytes_(b"model"),
    "date": lambda folder: np.datetime64("2024-01-01"),
    "record": lambda folder: np.zeros(1, [("a", "f4")])[0],
    "complex": lambda folder: np.complex64(1j),
    "namespace": lambda folder: argparse.Namespace(lr=1e-4),
    "decimal": lambda folder: Decimal("0.8"),
    "path": lambda folder: folder,
    "function": lambda folder: os.getcwd,
    "probe": lambda folder: _Probe(folder / "made"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_objects_of_other_classes_are_refused_beside_a_scalar(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"best_acc": np.float64(0.8), "state_dict": STATE, "odd": OTHERS[kind](tmp_path)}, path)
    with pytest.raises(InputError, match="tensors and numbers and nothing else"):
        load_weights(path)
    assert not (tmp_path / "made").exists()


def test_nothing_stays_admitted(tmp_path: Path) -> None:
    torch.save({"best_acc": np.float64(0.8), "state_dict": STATE}, tmp_path / "a.pth")
    before = set(torch.serialization.get_safe_globals())
    load_weights(tmp_path / "a.pth")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError, match="numpy"):
        torch.load(tmp_path / "a.pth", weights_only=True)


def test_threads_read_at_the_same_time(tmp_path: Path) -> None:
    for number in range(4):
        torch.save({"best_acc": np.float64(number), "state_dict": STATE}, tmp_path / f"{number}.pth")
    with ThreadPoolExecutor(4) as pool:
        for state, _ in pool.map(load_weights, [tmp_path / f"{number % 4}.pth" for number in range(40)]):
            assert torch.equal(state["layer.weight"], STATE["layer.weight"])
