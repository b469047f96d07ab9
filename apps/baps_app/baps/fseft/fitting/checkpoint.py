"""Save an unfinished fit on disk."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from baps.errors import BapsError
from baps.utils.atomic_write import atomic_write


class Checkpoint:
    """One checkpoint file.

    Args:
        file: file of this fit only; its folder is created.
        about: all that the result depends on, as a string; a file with another string is ignored.
        seconds: interval between checkpoints.
    """

    def __init__(self, file: Path, about: str, seconds: float = 20.0) -> None:
        self._file, self._about, self._seconds = file, about, seconds
        self._saved_at = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Load the state of the same fit.

        Returns:
            The state, or None if there is none.
        """
        try:
            state: dict[str, Any] = torch.load(self._file, weights_only=True)
            return state if state.pop("about") == self._about else None
        except FileNotFoundError:
            return None
        except Exception:  # The file is broken: the fit starts from the beginning.
            return None

    @property
    def due(self) -> bool:
        """Whether the interval has passed."""
        return time.monotonic() - self._saved_at >= self._seconds

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint.

        Args:
            state: tensors and plain values by name.

        Raises:
            BapsError: if it cannot be written.
        """
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._file, ".pt") as partial:
                torch.save({"about": self._about, **state}, partial)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError if the disk is full
            raise BapsError(
                f"The training cannot continue: it cannot be saved in {self._file.parent} ({error}). Free some space "
                "and train again; it continues from where it stopped."
            ) from error
        self._saved_at = time.monotonic()
