"""What became of requests: answered, refused with a sentence, or an error."""

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
"""What the server says of a fault that is not the caller's: no model, no PACS, no room."""

_EXAMPLES = 40


def is_sentence(text: str) -> bool:
    """Whether a text says something to a person: two words at least."""
    return len(text.split()) >= 2


def judge(status: int, body: bytes, method: str = "GET") -> str:
    """What a reply is: ``answered``, ``refused``, ``deliberate`` (a server's fault that it says), or ``error``.

    A refusal and a deliberate fault need a sentence; the reply to HEAD has no place for one.
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
        said = json.loads(body)
        return str(said.get("detail", "")) if isinstance(said, dict) else ""
    except ValueError:
        return body.decode(errors="replace")


@dataclass
class Tally:
    """Counts requests, from any number of threads.

    Attributes:
        verdicts: how many there were of each, see ``judge``; ``dropped`` where no reply came.
        codes: of the replies.
        times: milliseconds of those that were answered, by kind.
        errors: what went wrong, the first ones.
        last: when a reply last came, of the monotonic clock.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)
    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: list[dict[str, Any]] = field(default_factory=list)
    last: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def ask(self, kind: str, send: Callable[[], requests.Response], about: object = "") -> requests.Response | None:
        """Send a request and count what comes back.

        Args:
            kind: of request, for the table.
            send: sends it and reads all of the reply.
            about: what was sent, kept if it goes wrong.

        Returns:
            The reply, or None if none came, or if no client could send such a thing.
        """
        begun = time.perf_counter()
        try:
            reply = send()
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidHeader, UnicodeError, ValueError):
            return None  # It never left this machine.
        except (requests.RequestException, OSError) as error:
            self.note(kind, "dropped", f"{type(error).__name__}: {error}", about)
            return None
        took = 1000 * (time.perf_counter() - begun)
        verdict = judge(reply.status_code, reply.content, str(reply.request.method))
        with self._lock:
            self.codes[reply.status_code] += 1
            if verdict == "answered":
                self.times[kind].append(took)
        self.note(kind, verdict, f"{reply.status_code} {reply.text[:300]}", about)
        return reply

    def note(self, kind: str, verdict: str, said: str = "", about: object = "") -> None:
        """Count a verdict."""
        with self._lock:
            self.verdicts[verdict] += 1
            self.last = time.monotonic()
            if verdict in ("error", "dropped") and len(self.errors) < _EXAMPLES:
                self.errors.append({"kind": kind, "verdict": verdict, "said": said, "about": str(about)[:500]})

    @property
    def requests(self) -> int:
        """All of them."""
        return sum(self.verdicts.values())

    @property
    def errors_5xx(self) -> int:
        """Replies of 500 and more that were not meant."""
        deliberate = self.verdicts["deliberate"]
        return sum(count for code, count in self.codes.items() if code >= 500) - deliberate

    def record(self) -> dict[str, Any]:
        """For the JSON file."""
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
