"""The state of a pre-training run: a model, the average of its weights and an optimiser, in a resumable checkpoint."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from baps.utils.atomic_write import atomic_write
from tools.pretraining.averaging import update_average

_REPORT_SECONDS, _SAVE_SECONDS = 30, 180


class Run:
    """A pre-training run, which continues from its checkpoint.

    The step size warms up, stays constant, and then falls linearly to zero.

    Args:
        model: the model, on its device.
        optimiser: its optimiser.
        checkpoint: file of the run.
        total: number of steps (or pictures) of the run, including earlier calls.
        warm_up: number of steps during which the step size rises.
        decay: number of steps during which it falls.
        publish: writes the average of the weights after a number of steps.

    Attributes:
        average: exponential moving average of the model, which is published.
        done: number of steps so far.
    """

    def __init__(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        checkpoint: Path,
        total: int,
        warm_up: int,
        decay: int,
        publish: Callable[[nn.Module, int], None],
    ) -> None:
        self.average, self.done = copy.deepcopy(model), 0
        self._model, self._optimiser, self._checkpoint, self._publish = model, optimiser, checkpoint, publish
        self._total, self._warm_up, self._decay = total, warm_up, decay
        self._rate = float(optimiser.param_groups[0]["lr"])
        self._started = self._reported = self._saved = time.monotonic()
        self._mean_loss = 0.0
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True, map_location=next(model.parameters()).device)
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            self.done = state["done"]

    def should_continue(self, minutes: float) -> bool:
        """Return whether steps are left, and time.

        Args:
            minutes: time limit of this call.

        Returns:
            Whether to make another step.
        """
        return self.done < self._total and time.monotonic() - self._started < minutes * 60

    def step(self, loss: torch.Tensor, size: int, max_weight: float, smoothing: float) -> None:
        """Update the model and its average; now and then print the progress and write the checkpoint.

        Args:
            loss: the loss, a scalar.
            size: what it counts for, 1 or a number of pictures.
            max_weight: maximum weight of the average against the model.
            smoothing: weight of earlier losses in the printed one.
        """
        left = (self._total - self.done) / max(self._decay, 1)
        rate = self._rate * min(1.0, (self.done + size) / self._warm_up, left)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimiser.step()
        self.done += size
        update_average(self.average, self._model, min(max_weight, self.done / (self.done + 20 * size)))
        value = loss.item()
        self._mean_loss = smoothing * self._mean_loss + (1 - smoothing) * value if self._mean_loss else value
        now = time.monotonic()
        if now - self._reported > _REPORT_SECONDS:
            print(f"{self.done:,} of {self._total:,}, loss {self._mean_loss:.4f}, step size {rate:.1e}", flush=True)
            self._reported = now
        if now - self._saved > _SAVE_SECONDS:
            self.save()
            self._saved = now

    def save(self) -> None:
        """Write the checkpoint and the published weights."""
        self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        state = {name: part.state_dict() for name, part in self._parts().items()}
        with atomic_write(self._checkpoint, ".pt") as partial:  # torch.save needs a name with a suffix.
            torch.save({**state, "done": self.done}, partial)
        self._publish(self.average, self.done)

    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        return {"model": self._model, "average": self.average, "optimiser": self._optimiser}
