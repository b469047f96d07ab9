"""Compute values for pages in threads, so that no page waits for them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from baps.errors import BapsError

logger = logging.getLogger(__name__)

Value = TypeVar("Value")


@dataclass(frozen=True)
class Computed(Generic[Value]):
    """The last result of a computation.

    Attributes:
        value: The value, or None if there is none yet.
        error: Sentence about the last failure, or "". The value is then an earlier one.
    """

    value: Value | None = None
    error: str = ""


class BackgroundValue(Generic[Value]):
    """A value that is computed in a thread when it is asked for and too old. Thread-safe.

    Args:
        compute: Computes the value. The sentence of a ``BapsError`` is shown on the page.
        max_age: Age in seconds from which the value is computed again.
        clock: Returns the time in seconds.
    """

    def __init__(
        self, compute: Callable[[], Value], max_age: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._compute, self._max_age, self._clock = compute, max_age, clock
        self._result: Computed[Value] = Computed()
        self._computed_at: float | None = None
        self._thread: threading.Thread | None = None
        self._expiries = 0
        self._lock = threading.Lock()

    def get(self, wait: float = 0.1) -> Computed[Value]:
        """Return the last result, and compute the next one if it is too old.

        Args:
            wait: Seconds to wait for a first result.

        Returns:
            The result.
        """
        with self._lock:
            is_fresh = self._computed_at is not None and self._clock() - self._computed_at < self._max_age
            if not is_fresh and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="page", daemon=True)
                self._thread.start()
            thread = self._thread if self._computed_at is None else None
        if thread is not None:
            thread.join(wait)
        return self._result

    def expire(self) -> None:
        """Let the next call compute the value again, and wait for it as for a first result."""
        with self._lock:
            self._computed_at = None
            self._expiries += 1

    def _run(self) -> None:
        expiries = self._expiries
        try:
            result: Computed[Value] = Computed(self._compute())
        except BapsError as error:
            result = Computed(self._result.value, str(error))
        except Exception as error:  # The page shows the other parts.
            logger.warning("A part of the page could not be computed (%s).", type(error).__name__)
            sentence = f"This could not be computed ({type(error).__name__}). The log of the server has the details."
            result = Computed(self._result.value, sentence)
        with self._lock:
            self._result, self._thread = result, None
            # What was computed while the value expired may be out of date.
            self._computed_at = self._clock() if expiries == self._expiries else None
