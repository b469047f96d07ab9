"""A fit that is under way, on disk."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from baps.errors import BapsError
from baps.utils.atomic_write import atomic_write


class Checkpoint:
    """One file.

    Args:
        file: of this fit alone; its folder is made.
        about: all that the result depends on, as a string; a file that says something else is not gone on from.
        seconds: until it is ``due`` again.
    """

    def __init__(self, file: Path, about: str, seconds: float = 20.0) -> None:
        self._file, self._about, self._seconds = file, about, seconds
        self._kept_at = time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """What was kept of the same fit, or None."""
        try:
            kept: dict[str, Any] = torch.load(self._file, weights_only=True)
            return kept if kept.pop("about") == self._about else None
        except FileNotFoundError:
            return None
        except Exception:  # Broken in whatever way: the fit begins anew.
            return None

    @property
    def due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() - self._kept_at >= self._seconds

    def keep(self, state: Mapping[str, Any]) -> None:
        """Replace what was kept.

        Raises:
            BapsError: if it cannot be written.
        """
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._file, ".pt") as partial:
                torch.save({"about": self._about, **state}, partial)
        except (OSError, RuntimeError) as error:  # torch says RuntimeError where a disk is full
            raise BapsError(
                f"The training cannot go on: it cannot be kept in {self._file.parent} ({error}). Free some space and "
                "train again; it goes on from where it was."
            ) from error
        self._kept_at = time.monotonic()
