"""Redact logs so that they name no patient. Names of images, requests and paths of files may name one.

Messages of this project contain no such names, apart from paths, which are shortened. From other libraries, only
warnings and errors are logged, with their place in the code instead of their text. The text of exceptions is removed.
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

_OWN_LOGGERS = re.compile(r"(baps|main|task_train)(\.|$)|uvicorn\.error$")
"""Loggers of this project, of the output of trainings (already redacted), and of the start and stop of uvicorn."""


class RedactingFilter(logging.Filter):
    """Redacts log records, and drops messages of other libraries below the level of warnings."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info
        if error and error[0] is not None:
            record.exc_text, record.exc_info = _format_without_message(error[0], error[2]), None
        if record.name == "uvicorn.access" and isinstance(record.args, tuple) and len(record.args) == 5:
            client, method, path, version, status = record.args
            record.args = client, method, f"/{str(path).split('?')[0].split('/')[1]}", version, status
        elif _OWN_LOGGERS.match(record.name):
            message = redact_identifiers(record.getMessage())
            record.msg, record.args = "\n".join(map(printable, message.split("\n"))), None
        elif record.levelno < logging.WARNING:
            return False
        else:
            record.msg, record.args = f"(text removed) at {record.module}:{record.lineno}", None
        return True


def redact_logs() -> None:
    """Redact all logs of this process, and the errors that end it or one of its threads."""
    for name in ("", *logging.root.manager.loggerDict):
        for handler in logging.getLogger(name).handlers:
            if not any(isinstance(one, RedactingFilter) for one in handler.filters):
                handler.addFilter(RedactingFilter())
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # Otherwise a message that cannot be logged is printed as it is.
    sys.excepthook = lambda kind, _, trace: _print_error(kind, trace)
    threading.excepthook = lambda failure: _print_error(failure.exc_type, failure.exc_traceback)


def _format_without_message(kind: type[BaseException], trace: TracebackType | None) -> str:
    """Format the type of an error and its traceback."""
    places = [
        f"  {frame.filename.rpartition('site-packages/')[2].rpartition('baps_app/')[2]}:{frame.lineno} in {frame.name}"
        for frame in traceback.extract_tb(trace)
    ]
    return "\n".join([f"{kind.__name__} (text removed), from", *places])


def _print_error(kind: type[BaseException], trace: TracebackType | None) -> None:
    print(_format_without_message(kind, trace), file=sys.stderr)
