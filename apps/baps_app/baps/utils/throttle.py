"""Let training and clicks share one machine: training waits while a click is being answered.

The process that answers a click holds a shared lock on a file. Training tries to take the exclusive lock before each
batch of images, which succeeds when no click is being answered. On the CPU, the threads of the training also run at the
lowest priority. All of this works across processes, and the system releases the lock of a process that dies.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_MAX_WAIT = 5.0
"""Seconds that a batch waits at most, so that clicks without a pause do not stop a training for good."""

_PR_SET_PDEATHSIG = 1


@contextmanager
def inference_lock(file: Path) -> Iterator[None]:
    """Take priority over training while the block runs. Any number of clicks may hold the lock at once.

    Args:
        file: path of the lock file. If it cannot be created, the block runs without a lock.
    """
    with ExitStack() as stack:
        with suppress(OSError):  # Some network file systems have no locks.
            file.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(file.open("a")), fcntl.LOCK_SH)
        yield


def wait_for_idle(file: Path, max_wait: float = _MAX_WAIT) -> Callable[[], None]:
    """Make the function with which training waits until no click is being answered.

    Args:
        file: path of the lock file.
        max_wait: seconds to wait at most.

    Returns:
        A function that blocks until no click is being answered, or for ``max_wait`` seconds.
    """

    def wait() -> None:
        deadline = time.monotonic() + max_wait
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = file.open("a")
        except OSError:  # Then nobody can hold the lock.
            return
        with handle:
            while time.monotonic() < deadline:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    time.sleep(0.01)
                except OSError:
                    return

    return wait


def lower_priority() -> None:
    """Give every thread of this process the lowest priority, and end the process when its parent ends.

    Raises:
        SystemExit: if the parent has ended already.
    """
    if sys.platform != "linux":
        os.nice(19)
        return
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # The thread has ended since.
            os.setpriority(os.PRIO_PROCESS, int(thread.name), 19)
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1 and os.getsid(0) != os.getsid(
        1
    ):  # The parent died before prctl; in a container the server may be process 1.
        raise SystemExit("The server is gone; the training ends with it.")
