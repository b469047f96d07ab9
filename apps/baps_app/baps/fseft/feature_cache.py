"""What adapters read of volumes, kept on disk: the frozen model is asked once a volume.

Half precision, one file a volume, mapped rather than loaded: a training reads the cubes that it draws. Files are named
by the hash of model and image, and nothing tells whom they show; as an image can be guessed from them, only the owner
may open the folder. Any number of processes may use it.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import torch

from baps.fseft.adapters import Reads
from baps.fseft.inference import read
from baps.fseft.landmarks import add_landmarks
from baps.fseft.models import OrganModel
from baps.utils.atomic_write import PARTIAL, atomic_write

Reading = Callable[[Reads], torch.Tensor]
"""What adapters read of one image."""

_WRITTEN = 3600.0
"""Seconds after which a file that is not whole is nobody's any more."""


class FeatureCache:
    """A folder of them; the longest unused ones go when it is full.

    Args:
        folder: or None to keep nothing.
        most_bytes: bound on the files together; a reading that is larger alone is not kept.
    """

    def __init__(self, folder: Path | None, most_bytes: int = 4 << 30) -> None:
        self._folder, self._most = folder, most_bytes

    def of(self, model: OrganModel, reads: Reads, image: torch.Tensor) -> torch.Tensor:
        """What ``read`` gives of an image (1, H, W, D) in [0, 1]; features and probabilities in half precision.

        Whether it was kept makes no difference to the numbers.
        """
        if reads == "images":
            return image
        kept = self._file(model, reads, image)
        if kept is not None:
            with suppress(OSError, ValueError, EOFError):  # A broken file is made again.
                found = _mapped(kept)
                os.utime(kept)
                return found
        made = self._made(model, reads, image).half()
        if kept is not None:
            with suppress(OSError):  # A full disk: it is made again the next time.
                self._keep(kept, made)
                return _mapped(kept)  # So that memory does not hold those of a whole training.
        return made

    def of_image(self, model: OrganModel, image: torch.Tensor) -> Reading:
        """``of`` one image; what could not be kept is not made twice."""
        return cache(lambda reads: self.of(model, reads, image))

    def _made(self, model: OrganModel, reads: Reads, image: torch.Tensor) -> torch.Tensor:
        if reads == "landmarks":  # Features are often kept, and take far longer.
            return add_landmarks(model.network, image, self.of(model, "features", image), model.spacing)
        return read(model.network, reads, image, model.side)

    def _file(self, model: OrganModel, reads: Reads, image: torch.Tensor) -> Path | None:
        if self._folder is None:
            return None
        digest = hashlib.sha256(f"{model.sha256} {model.side} {reads} {tuple(image.shape)}".encode())
        digest.update(image.numpy().tobytes())
        return self._folder / f"{digest.hexdigest()[:32]}.npy"

    def _keep(self, file: Path, made: torch.Tensor) -> None:
        size = made.nbytes
        if size > self._most:
            return
        file.parent.mkdir(0o700, parents=True, exist_ok=True)
        for left in file.parent.glob(f"{PARTIAL}*"):  # By a process that was killed.
            with suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > _WRITTEN:
                    left.unlink()
        found = []
        for other in file.parent.glob("*.npy"):
            with suppress(FileNotFoundError):  # Another process made room too.
                about = other.stat()
                found.append((about.st_mtime, about.st_size, other))
        taken = sum(length for _, length, _ in found)
        for _, length, other in sorted(found):
            if taken + size <= self._most:
                break
            other.unlink(missing_ok=True)
            taken -= length
        with atomic_write(file) as partial, partial.open("wb") as out:
            np.save(out, made.numpy())


def _mapped(file: Path) -> torch.Tensor:
    return torch.from_numpy(np.load(file, mmap_mode="c"))
