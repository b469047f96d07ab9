"""What is shown of a training: a small JSON file for Slicer and OHIF, and its course for TensorBoard."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baps.utils.atomic_write import atomic_write

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)


class Stats:
    """Of a training that begins now.

    Args:
        file: replaced whenever there is something new; a reader sees the old or the new one, never a part. The course
            goes to a folder ``tensorboard`` beside it.

    Attributes:
        values: what is in the file; Slicer divides by ``total_epochs``.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._begun = file, time.time()
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        self.values: dict[str, Any] = {
            "start_time": now,
            "epoch": 0,
            "total_epochs": 1,
            "best_metric": 0.0,
            "adapters": {},
            "skipped": {},
        }
        self._write()

    def leave_out(self, reasons: Mapping[str, str]) -> None:
        """Note what is not trained on, and why."""
        if reasons:  # Which and why stands in the statistics: the sentences name images.
            logger.warning("Skipped: %d; see skipped in the statistics.", len(reasons))
        self.values["skipped"].update(reasons)

    def report(self, name: str, epoch: int, epochs: int, dice: float, **others: float) -> None:
        """How far it is, with which adapter, the last Dice, and other numbers."""
        best = round(max(self.values["best_metric"], dice), 4)
        self.values.update(epoch=epoch, total_epochs=epochs, best_metric=best, label=name, **others)
        self._write()
        for what, value in {"dice": dice, **others}.items():
            self._course.add_scalar(f"{name}/{what}", value, epoch)

    def add(self, name: str, said: Mapping[str, Any]) -> None:
        """Note what became of an adapter."""
        self.values["adapters"][name] = said
        self._write()
        logger.info("%s: %s; %s", name, said["status"], said["reason"])

    def end(self) -> None:
        """The training is over, whichever way."""
        self.values["total_time"] = f"{time.time() - self._begun:.0f} s"
        self._write()
        if "_course" in vars(self):
            self._course.close()

    @cached_property
    def _course(self) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter  # A second's import; the server itself never needs it.

        started = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(self._begun))
        return SummaryWriter(str(self._file.parent / "tensorboard" / started))

    def _write(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self._file) as partial:
            partial.write_text(json.dumps(self.values, allow_nan=False))


def read_stats(path: Path) -> dict[str, Any]:
    """What was written last, or nothing."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
