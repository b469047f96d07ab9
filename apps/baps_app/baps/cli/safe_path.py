"""Keep Python from importing modules from the current folder, also where PYTHONPATH has an empty entry.

Import this module before any module outside the standard library. It does not cover the modules that Python itself
imports at start (``sitecustomize``).
"""

from __future__ import annotations

import os
import sys

_entries = os.environ.get("PYTHONPATH", "/").split(os.pathsep)
_relative = {os.path.abspath(entry) for entry in _entries if not os.path.isabs(entry)}  # noqa: PTH100, PTH117
sys.path[:] = [entry for entry in sys.path if entry and entry not in _relative]
