"""Logs that name no patient: what others write into them may hold image names, requests and paths of files.

What this project logs itself is written with care, and stays but for paths. Of what other libraries log, warnings and
worse are kept, but of these only where they come from; the rest is dropped, and so are the words of errors.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
from types import TracebackType

from baps.utils.printable import printable
from baps.utils.redaction import redact_identifiers

_CAREFUL = re.compile(r"(baps|main|task_train)(\.|$)|uvicorn\.error$")
"""Loggers of ours, that of what a training printed (which went through here before), and that of starts and stops."""


class _Discreet(logging.Filter):
    """Lets through what names nobody, and takes the names out of the rest."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info
        if error and error[0] is not None:
            record.exc_text, record.exc_info = _without_words(error[0], error[2]), None
        if record.name == "uvicorn.access" and isinstance(record.args, tuple) and len(record.args) == 5:
            client, method, path, version, status = record.args
            record.args = client, method, f"/{str(path).split('?')[0].split('/')[1]}", version, status
        elif _CAREFUL.match(record.name):
            said = redact_identifiers(record.getMessage())
            record.msg, record.args = "\n".join(map(printable, said.split("\n"))), None
        elif record.levelno < logging.WARNING:
            return False
        else:
            record.msg, record.args = f"(words left out) at {record.module}:{record.lineno}", None
        return True


def redact_logs() -> None:
    """Have every log of this process, and every error that ends it, name no patient."""
    for name in ("", *logging.root.manager.loggerDict):
        for handler in logging.getLogger(name).handlers:
            if not any(isinstance(one, _Discreet) for one in handler.filters):
                handler.addFilter(_Discreet())
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # A log that cannot be written would print what it was to say.
    sys.excepthook = lambda kind, _, trace: _say(kind, trace)
    threading.excepthook = lambda failed: _say(failed.exc_type, failed.exc_traceback)


def _without_words(kind: type[BaseException], trace: TracebackType | None) -> str:
    """An error as its kind and the places in the program that it came through."""
    places = [
        f"  {frame.filename.rpartition('site-packages/')[2].rpartition('baps_app/')[2]}:{frame.lineno} in {frame.name}"
        for frame in traceback.extract_tb(trace)
    ]
    return "\n".join([f"{kind.__name__} (words left out), from", *places])


def _say(kind: type[BaseException], trace: TracebackType | None) -> None:
    print(_without_words(kind, trace), file=sys.stderr)
