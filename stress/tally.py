"""Count requests by their outcome: answered, refused with a sentence, or an error."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import requests

DELIBERATE = (502, 503, 504, 507)
"""Statuses of failures that the server reports and the client did not cause: no model, no PACS, no disk space."""

_EXAMPLES = 40


def is_sentence(text: str) -> bool:
    """Check that a text has at least two words."""
    return len(text.split()) >= 2


def judge(status: int, body: bytes, method: str = "GET") -> str:
    """Classify a reply: ``answered``, ``refused``, ``deliberate`` (a failure that the server reports), or ``error``.

    A refusal and a deliberate failure need a sentence, except in the reply to HEAD, which has no body.
    """
    if status < 400:
        return "answered"
    if status >= 500 and status not in DELIBERATE:
        return "error"
    if method != "HEAD" and not is_sentence(_detail(body)):
        return "error"
    return "refused" if status < 500 else "deliberate"


def _detail(body: bytes) -> str:
    try:
        content = json.loads(body)
        return str(content.get("detail", "")) if isinstance(content, dict) else ""
    except ValueError:
        return body.decode(errors="replace")


@dataclass
class Tally:
    """Counts the outcomes of requests; thread-safe.

    Attributes:
        verdicts: number of requests by verdict, see ``judge``; ``dropped`` if no reply came.
        codes: number of replies by status.
        times: milliseconds of the answered requests, by kind.
        errors: the first errors.
        last_reply: time of the last reply, of the monotonic clock.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)
    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: list[dict[str, Any]] = field(default_factory=list)
    last_reply: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def send(self, kind: str, request: Callable[[], requests.Response], about: object = "") -> requests.Response | None:
        """Send a request and count its outcome.

        Args:
            kind: kind of request, for the table.
            request: function that sends the request and reads the whole reply.
            about: description of the request, recorded with an error.

        Returns:
            The reply, or None if no reply came or the client library cannot send such a request.
        """
        start = time.perf_counter()
        try:
            reply = request()
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidHeader, UnicodeError, ValueError):
            return None  # The request was not sent.
        except (requests.RequestException, OSError) as error:
            self.note(kind, "dropped", f"{type(error).__name__}: {error}", about)
            return None
        milliseconds = 1000 * (time.perf_counter() - start)
        verdict = judge(reply.status_code, reply.content, str(reply.request.method))
        with self._lock:
            self.codes[reply.status_code] += 1
            if verdict == "answered":
                self.times[kind].append(milliseconds)
        self.note(kind, verdict, f"{reply.status_code} {reply.text[:300]}", about)
        return reply

    def note(self, kind: str, verdict: str, message: str = "", about: object = "") -> None:
        """Count a verdict."""
        with self._lock:
            self.verdicts[verdict] += 1
            self.last_reply = time.monotonic()
            if verdict in ("error", "dropped") and len(self.errors) < _EXAMPLES:
                self.errors.append({"kind": kind, "verdict": verdict, "said": message, "about": str(about)[:500]})

    @property
    def requests(self) -> int:
        """Number of all requests."""
        return sum(self.verdicts.values())

    @property
    def errors_5xx(self) -> int:
        """Number of replies with status 500 or more that are not deliberate."""
        deliberate = self.verdicts["deliberate"]
        return sum(count for code, count in self.codes.items() if code >= 500) - deliberate

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for the JSON file."""
        return {
            "requests": self.requests,
            "verdicts": dict(self.verdicts),
            "codes": {str(code): count for code, count in sorted(self.codes.items())},
            "deliberate": {str(code): self.codes[code] for code in DELIBERATE},
            "errors_5xx": self.errors_5xx,
            "dropped": self.verdicts["dropped"],
            "failures": self.verdicts["error"] + self.verdicts["dropped"],
            "ms": {
                kind: {
                    "count": len(times),
                    "p50": round(float(np.percentile(times, 50)), 1),
                    "p95": round(float(np.percentile(times, 95)), 1),
                    "longest": round(max(times), 1),
                }
                for kind, times in sorted(self.times.items())
            },
            "examples": self.errors,
        }
