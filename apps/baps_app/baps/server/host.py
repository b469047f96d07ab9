"""MONAI Label's application without what it prints: its steps, and that every origin may ask, which is not so here."""

from __future__ import annotations

import io
import logging
from contextlib import redirect_stdout

logging.getLogger("monailabel").setLevel(logging.WARNING)  # It logs paths and settings when it starts.

with redirect_stdout(io.StringIO()):
    import monailabel.app as _host

vars(_host)["print"] = lambda *_: None  # In place of the built-in, for this module alone.
app = _host.app
