"""No module comes from the folder that a command is run in, also where PYTHONPATH has an empty entry.

Imported before anything that is not Python's own. What Python itself imports first (``sitecustomize``) is beyond it.
"""

from __future__ import annotations

import os
import sys

_named = os.environ.get("PYTHONPATH", "/").split(os.pathsep)
_relative = {os.path.abspath(entry) for entry in _named if not os.path.isabs(entry)}  # noqa: PTH100, PTH117
sys.path[:] = [entry for entry in sys.path if entry and entry not in _relative]
