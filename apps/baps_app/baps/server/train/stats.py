"""Statistics of a training: a small JSON file for 3D Slicer and OHIF, and a log for TensorBoard."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from baps.utils.atomic_write import atomic_write

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

TIME_FORMAT = "%Y-%m-%d %H:%M:%S"
"""Format of ``start_time``, in local time."""

_MAX_POINTS = 100
"""Maximum number of points of a curve. Viewers get the statistics with every request for information."""


class Stats:
    """The statistics of a training that begins now; ``reset`` creates them.

    Attributes:
        values: Content of the file. ``total_epochs`` is never 0, because 3D Slicer divides by it.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._started = file, time.time()
        now = time.strftime(TIME_FORMAT)
        self.values: dict[str, Any] = {
            "start_time": now,
            "epoch": 0,
            "total_epochs": 1,
            "best_metric": 0.0,
            "adapters": {},
            "skipped": {},
            "curves": {},
            "request": {},
        }

    @classmethod
    def reset(cls, file: Path, request: Mapping[str, str] = MappingProxyType({})) -> Stats:
        """Replace the statistics of the last training by empty ones.

        Args:
            file: JSON file, which is replaced atomically. The log for TensorBoard goes to ``tensorboard`` beside it.
            request: Options that the training was started with.

        Returns:
            The new statistics.
        """
        stats = cls(file)
        stats.values["request"] = dict(request)
        stats._write()
        return stats

    def add_skipped(self, reasons: Mapping[str, str]) -> None:
        """Add images that the training skips.

        Args:
            reasons: Reasons by image, or by label and image.
        """
        if reasons:  # The log must not contain the reasons, because they name images.
            logger.warning("Skipped: %d; see skipped in the statistics.", len(reasons))
        self.values["skipped"].update(reasons)

    def report(self, name: str, epoch: int, epochs: int, dice: float, **others: float) -> None:
        """Report progress.

        Args:
            name: Name of the adapter.
            epoch: Number of finished epochs or steps.
            epochs: Total number of epochs or steps.
            dice: The last Dice, 0 to 1.
            others: Further numbers by name.
        """
        best = round(max(self.values["best_metric"], dice), 4)
        self.values.update(epoch=epoch, total_epochs=epochs, best_metric=best, label=name, **others)
        self._add_point(name, others.get("black_box_images", epoch), dice)
        self._write()
        for metric, value in {"dice": dice, **others}.items():
            self._tensorboard.add_scalar(f"{name}/{metric}", value, epoch)

    def _add_point(self, name: str, position: float, dice: float) -> None:
        """Add a point to the curve of an adapter, unless its Dice is that of the last point."""
        curve, point = self.values["curves"].setdefault(name, []), [position, round(dice, 4)]
        if not curve or curve[-1][1] != point[1]:
            curve.append(point)
        if len(curve) > _MAX_POINTS:
            del curve[1:-1:2]  # The first and the last one stay.

    def add(self, name: str, record: Mapping[str, Any]) -> None:
        """Add the result of an adapter.

        Args:
            name: Name of the adapter.
            record: Record of the adapter, with ``status`` and ``reason``.
        """
        self.values["adapters"][name] = record
        self._write()
        logger.info("%s: %s", name, record["reason"])

    def end(self) -> None:
        """End the statistics, after success or failure."""
        self.values["total_time"] = f"{time.time() - self._started:.0f} s"
        self._write()
        if "_tensorboard" in vars(self):
            self._tensorboard.close()

    @cached_property
    def _tensorboard(self) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter  # Takes a second to import; the server itself never needs it.

        started = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(self._started))
        return SummaryWriter(str(self._file.parent / "tensorboard" / started))

    def _write(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self._file) as partial:
            partial.write_text(json.dumps(self.values, allow_nan=False))


def read_stats(path: Path) -> dict[str, Any]:
    """Read the statistics of the last training.

    Args:
        path: The JSON file.

    Returns:
        Its content, or an empty dictionary if there is no usable file.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
