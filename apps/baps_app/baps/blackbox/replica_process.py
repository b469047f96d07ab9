"""Run a replica of a black box in a process of its own, whose program is ``replica_worker``.

The two processes talk over a pair of sockets that only they have. The child ends when its parent does, because the
sockets are then closed.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

import baps
from baps.blackbox.replicas import Answer, Replica, ReplicaError
from baps.prompts import Prompt

_PROGRAM = "from baps.blackbox.replica_worker import main; main()"
_FOLDER = Path(baps.__file__).parents[1]
"""Folder that the child starts in: it imports this package from there, and nothing from the folder of a user."""


class ReplicaProcess(Replica):
    """A replica in a process of its own.

    Args:
        name: name for messages.
        black_box: name of the black box, see ``load_black_box``.
        weights: its checkpoint, or None.
        sha256: hash that the weights must have.
        device: one device.
    """

    def __init__(self, name: str, black_box: str, weights: Path | None, sha256: str, device: str) -> None:
        super().__init__(name)
        self._arguments = (black_box, weights.absolute() if weights else None, sha256, device)
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Any, Any] | None = None

    @property
    def pid(self) -> int | None:
        """Number of the process, or None before it is started."""
        return self._process.pid if self._process else None

    @override
    def start(self, timeout: float) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 (no shell)
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=_FOLDER,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl+C is for the parent, which ends its replicas itself.
            )
        self._connection = Connection(ours.detach())
        weakref.finalize(self, _end, self._process)
        self._exchange(self._arguments, timeout)

    @override
    def segment(self, images: NDArray[np.uint8], prompts: Sequence[Prompt], timeout: float) -> Answer:
        answer = self._exchange((images, list(prompts)), timeout)
        if not isinstance(answer, np.ndarray) or answer.shape != images.shape[:3] or not np.isfinite(answer).all():
            raise ReplicaError("returned numbers that are not probabilities.")
        return answer

    @override
    def stop(self) -> None:
        if self._process:
            _end(self._process)

    def _exchange(self, message: object, timeout: float) -> object:
        assert self._process is not None
        assert self._connection is not None
        late = threading.Event()
        watchdog = threading.Timer(
            timeout, _end_late, (self._process, late)
        )  # Sending to a stopped process blocks, too.
        watchdog.start()
        try:
            self._connection.send(message)
            failure, answer = self._connection.recv()
        except (OSError, EOFError):
            _end(self._process)
            code = self._process.returncode
            if late.is_set():
                raise ReplicaError(f"did not answer within {timeout:.0f} s.") from None
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            raise ReplicaError(f"{how}.{' The system does so if memory is short.' if code == -9 else ''}") from None
        finally:
            watchdog.cancel()
        if failure:
            raise ReplicaError(f"failed: {failure}")
        return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _end_late(process: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    process.kill()
