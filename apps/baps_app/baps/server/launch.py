"""Start MONAI Label with this app. ``baps serve`` runs this file, which prepares the process before any import of it.

* It changes to the folder of the app. Otherwise Python would import modules from the folder that the server was started
  in, here and in the trainings that MONAI Label starts, and MONAI Label would read settings from the ``.env`` there.
* Other users can neither read nor change the files that the server and its trainings write.
* Temporary files are in a folder that is removed at the end.

The arguments are those of ``python -m monailabel.main``. Paths in them, and in the environment, are absolute. Run the
file by its path: with ``-m``, Python would import modules from the current folder.
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
sys.path[:] = [place for place in sys.path if place != _HERE]  # Import its modules only as ``baps.server``.


def _exit(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> None:
    """Run MONAI Label's command in this process."""
    from baps.utils.temporary_folder import temporary_folder

    app = Path(sys.argv[sys.argv.index("--app") + 1])
    os.umask(0o077)
    os.chdir(app)
    with suppress(OSError):  # It does not exist yet, or is another user's.
        (app / "logs").chmod(0o700)  # Earlier releases wrote logs that other users can read.
    logging.getLogger("__main__").setLevel(logging.WARNING)  # MONAI Label's command logs its arguments.
    signal.signal(signal.SIGTERM, _exit)
    terminated = False
    try:
        with temporary_folder():
            runpy.run_module("monailabel.main", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        terminated = end.code == 128 + signal.SIGTERM
        if not terminated:
            raise
    if terminated:  # End as a program without a handler: the parent sees the signal, and no thread is waited for.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
