"""Cache on disk what adapters read of volumes, so that the frozen model runs once per volume.

Inputs are stored in half precision, one file per volume, and memory-mapped: a training reads only the cubes that it
draws. Files are named by the hash of model and image, so that they do not reveal the patient; as an image can be
reconstructed from them, only the owner may open the folder. Any number of processes may use it.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from baps.fseft.adapters import InputKind
from baps.fseft.inference import compute_inputs
from baps.fseft.landmarks import add_landmarks
from baps.fseft.models import OrganModel
from baps.utils.atomic_write import PARTIAL, atomic_write

InputGetter = Callable[[InputKind], torch.Tensor]
"""Return the input of an adapter, by its kind, for one image."""

_VERSION = 2
"""Increase it whenever the same weights give other features than before."""

_STALE_SECONDS = 3600.0
"""Age in seconds after which an unfinished file is considered abandoned."""


class FeatureCache:
    """A folder of adapter inputs; the least recently used ones are removed when it is full.

    Args:
        folder: the folder, or None to keep nothing.
        max_bytes: upper bound on all files together; a larger input is not stored.
    """

    def __init__(self, folder: Path | None, max_bytes: int = 4 << 30) -> None:
        self._folder, self._max_bytes = folder, max_bytes

    def get(self, model: OrganModel, input_kind: InputKind, image: torch.Tensor) -> torch.Tensor:
        """Return the input of an adapter, from the cache or by ``compute_inputs``.

        Features and probabilities have half precision, whether they were cached or not.

        Args:
            model: the organ model.
            input_kind: what the adapter reads.
            image: (1, H, W, D) in [0, 1].

        Returns:
            The input, on the CPU, see ``compute_inputs``.
        """
        return self._get(model, input_kind, image, partial(self.get, model, image=image))

    def _get(self, model: OrganModel, input_kind: InputKind, image: torch.Tensor, get: InputGetter) -> torch.Tensor:
        """Return an input, which may be made from others that ``get`` returns."""
        if input_kind == "images":
            return image
        file = self._file(model, input_kind, image)
        if file is not None:
            with suppress(OSError, ValueError, EOFError):  # A broken file is computed again.
                inputs = _memory_map(file)
                os.utime(file)
                return inputs
        if input_kind == "landmarks":  # Features are often kept, and take far longer.
            computed = add_landmarks(model.network, image, get("features"), model.spacing)
        else:
            computed = compute_inputs(model.network, input_kind, image, model.side)
        inputs = computed.half()
        if file is not None:
            with suppress(OSError):  # The disk is full: it is computed again the next time.
                self._store(file, inputs)
                return _memory_map(file)  # Memory does not hold the inputs of a whole training.
        return inputs

    def for_image(self, model: OrganModel, image: torch.Tensor) -> InputGetter:
        """Return ``get`` for one image; what cannot be stored is computed once.

        Args:
            model: the organ model.
            image: (1, H, W, D) in [0, 1].

        Returns:
            A function of the kind of input.
        """

        @cache
        def get_inputs(input_kind: InputKind) -> torch.Tensor:
            return self._get(model, input_kind, image, get_inputs)

        return get_inputs

    def _file(self, model: OrganModel, input_kind: InputKind, image: torch.Tensor) -> Path | None:
        if self._folder is None:
            return None
        digest = hashlib.sha256(f"{_VERSION} {model.sha256} {model.side} {input_kind} {tuple(image.shape)}".encode())
        digest.update(image.numpy().tobytes())
        return self._folder / f"{digest.hexdigest()[:32]}.npy"

    def _store(self, file: Path, inputs: torch.Tensor) -> None:
        size = inputs.nbytes
        if size > self._max_bytes:
            return
        file.parent.mkdir(0o700, parents=True, exist_ok=True)
        for stale in file.parent.glob(f"{PARTIAL}*"):  # By a process that was killed.
            with suppress(FileNotFoundError):
                if time.time() - stale.stat().st_mtime > _STALE_SECONDS:
                    stale.unlink()
        files = []
        for existing in file.parent.glob("*.npy"):
            with suppress(FileNotFoundError):  # Another process made room too.
                status = existing.stat()
                files.append((status.st_mtime, status.st_size, existing))
        total = sum(length for _, length, _ in files)
        for _, length, existing in sorted(files):
            if total + size <= self._max_bytes:
                break
            existing.unlink(missing_ok=True)
            total -= length
        with atomic_write(file) as partial, partial.open("wb") as out:
            np.save(out, inputs.numpy())


def _memory_map(file: Path) -> torch.Tensor:
    return torch.from_numpy(np.load(file, mmap_mode="c"))
