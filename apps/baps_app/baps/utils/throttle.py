"""Training and clicking share one machine: the training waits while somebody clicks.

Whoever answers a click holds a shared lock on a file; the training passes a barrier before each batch of images, which
is open when nobody holds the lock. On the CPU its threads also run at the lowest priority. All of it works between
processes, and a process that dies lets go.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PATIENCE = 5.0
"""Seconds that a batch waits at the most, so that clicks without a pause do not stop a training for good."""

_PR_SET_PDEATHSIG = 1


@contextmanager
def inference_lock(file: Path) -> Iterator[None]:
    """Goes first, as long as the context lasts. Any number of users may at once.

    Args:
        file: of the lock; where it cannot be made, nobody waits.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        held = file.open("a")
    except OSError:
        yield
        return
    with held:
        with suppress(OSError):  # Some network disks know no locks.
            fcntl.flock(held, fcntl.LOCK_SH)
        yield


def wait_for_idle(file: Path, patience: float = _PATIENCE) -> Callable[[], None]:
    """A function that returns when nobody clicks, or after ``patience`` seconds."""

    def wait() -> None:
        deadline = time.monotonic() + patience
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            tried = file.open("a")
        except OSError:  # Nobody can hold it.
            return
        with tried:
            while time.monotonic() < deadline:
                try:
                    fcntl.flock(tried, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    time.sleep(0.01)
                except OSError:
                    return

    return wait


def lower_priority() -> None:
    """Give this process's threads the lowest priority, and end it when its parent does, however that ends."""
    if sys.platform != "linux":
        os.nice(19)
        return
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # It has ended since.
            os.setpriority(os.PRIO_PROCESS, int(thread.name), 19)
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1 and os.getsid(0) != os.getsid(1):  # It died before; in a container the server may be 1.
        raise SystemExit("The server is gone; the training ends with it.")
