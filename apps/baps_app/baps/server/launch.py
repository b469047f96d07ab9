"""Start MONAI Label with this app, after what must hold before anything of it is imported; ``baps serve`` runs it.

* The folder that the server was started in is left: Python would import modules from it, here and in the trainings that
  MONAI Label starts, and MONAI Label would read settings from its ``.env``.
* What the server and its trainings write is their user's alone.
* Temporary files go to a folder that is removed in the end.

The arguments are those of ``python -m monailabel.main``; paths in them, and in the environment, begin at the root. Run
it by its path: with ``-m``, Python would import modules from the folder that it is started in.
"""

from __future__ import annotations

import logging
import os
import runpy
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

_HERE = str(Path(__file__).resolve().parent)
sys.path[:] = [place for place in sys.path if place != _HERE]  # Its modules are found as ``baps.server`` alone.


def _end(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> None:
    """Become MONAI Label's server."""
    from baps.utils.temporary_folder import temporary_folder

    app = Path(sys.argv[sys.argv.index("--app") + 1])
    os.umask(0o077)
    os.chdir(app)
    with suppress(OSError):  # Not there yet, or another user's.
        (app / "logs").chmod(0o700)  # Releases before wrote logs that others may read.
    logging.getLogger("__main__").setLevel(logging.WARNING)  # MONAI Label's command, which lists its arguments.
    signal.signal(signal.SIGTERM, _end)
    ended = False
    try:
        with temporary_folder():
            runpy.run_module("monailabel.main", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        ended = end.code == 128 + signal.SIGTERM
        if not ended:
            raise
    if ended:  # As a program that has no handler: who started it sees the signal, and no thread is waited for.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
