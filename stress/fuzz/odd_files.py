"""Broken files, read by the readers themselves: each is answered or refused with a sentence, or it is a failure.

They are read in a process of their own, which is started anew after a file that it did not survive.
``python -m stress.fuzz.odd_files`` is that process.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from baps.site.app_folder import PACKAGES
from benchmarks.paths import ROOT

SECONDS = 20
"""That one file may take."""

MEGABYTES = 600
"""That one file may take more than any before it; volumes of 64 MB are allowed."""

KINDS = (
    "nifti", "nifti_gz", "nifti_label", "nrrd", "nrrd_gz", "metaimage", "metaimage_gz", "tiff", "tiff_gz", "dicom",
    "safetensors",
)  # fmt: skip
_STALLED = 180


class _TooLongError(BaseException):
    """No reader takes it for a broken file."""


def read_one(kind: str, path: Path, image: Any) -> None:
    """Read a file as the server would: as an image or a label, or as an adapter, which is tried too.

    Args:
        kind: of ``KINDS``.
        path: the file.
        image: the volume that a label must fit.

    Raises:
        BapsError: if it is refused.
    """
    from baps.adapters.adapter_file import read_adapter
    from baps.io import read_labels, read_volume
    from baps.prompts import Prompt

    if kind == "safetensors":
        adapter, _ = read_adapter(path)
        adapter.transform_images(adapter.crop(np.zeros((1, 32, 32, 3), np.uint8), [Prompt(((9.0, 9.0),))]))
    elif kind in ("nifti_label", "nrrd_gz"):
        read_labels(path, image)
    else:
        read_volume(path)


def main(seed: int, begin: int, end: int) -> None:
    """Read the files of these numbers; print ``<number>`` before each one and ``<number> <verdict> ...`` after it."""
    from baps.errors import BapsError
    from baps.io import read_volume
    from stress.fuzz.mutations import mutant, seeds
    from stress.tally import is_sentence

    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    own = Path.cwd()
    good = seeds()
    (own / "image.nii").write_bytes(good["nifti"][1])
    image = read_volume(own / "image.nii")
    (own / "image.nii").unlink()

    def too_long(*_: object) -> None:
        raise _TooLongError

    signal.signal(signal.SIGALRM, too_long)
    most = _peak_mb()
    for number in range(begin, end):
        kind = KINDS[number % len(KINDS)]
        made = mutant(kind, good[kind], np.random.default_rng([seed, number]))
        path = own / f"{number}{made.suffix}"
        path.write_bytes(made.content)
        print(number, flush=True)
        signal.alarm(SECONDS)
        said = ""
        try:
            read_one(kind, path, image)
            verdict = "answered"
        except BapsError as error:
            said = str(error)
            verdict = "refused" if is_sentence(said) and "\n" not in said[:20] else "error"
        except _TooLongError:
            verdict, said = "error", f"It took more than {SECONDS} seconds."
        except BaseException as error:  # Whatever it is, it would have been a 500.
            verdict, said = "error", f"{type(error).__name__}: {error}"
        finally:
            signal.alarm(0)
        path.unlink(missing_ok=True)
        before, most = most, _peak_mb()
        if most > before + MEGABYTES:
            verdict, said = "error", f"It took {most - before} MB."
        if list(own.iterdir()):
            verdict, said = "stray", ", ".join(found.name for found in own.iterdir())
        told = said.replace("\n", " ")[:300] if verdict in ("error", "stray") else ""
        print(number, verdict, made.how.replace(" ", "_").replace(",_", "+"), told, flush=True)
    print("memory", most, flush=True)


def _peak_mb() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def fuzz_files(count: int, seed: int, seconds: float) -> dict[str, Any]:
    """Have so many broken files read, for so many seconds at the most.

    Returns:
        ``inputs`` by kind and by verdict, ``failures``, ``crashes``, ``strays``, ``peak_mb``, and examples with the
        number that makes the file again: ``mutant(kind, seeds()[kind], default_rng([seed, number]))``.
    """
    verdicts: Counter[str] = Counter()
    by_kind: Counter[str] = Counter()
    examples: list[dict[str, Any]] = []
    peak, number, deadline = 0, 0, time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ, "HF_HUB_OFFLINE": "1", "BAPS_MAX_VOLUME_MB": "64", "OMP_NUM_THREADS": "1", "TMPDIR": folder,
            "PYTHONPATH": os.pathsep.join((str(PACKAGES), str(ROOT))),
        }  # fmt: skip
        while number < count and time.monotonic() < deadline:
            own = Path(tempfile.mkdtemp(dir=folder))
            command = [sys.executable, "-m", "stress.fuzz.odd_files", str(seed), str(number), str(count)]
            child = subprocess.Popen(
                command, cwd=own, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            begun = None
            assert child.stdout is not None
            guard = _Guard(child, deadline)
            for line in child.stdout:
                guard.heard()
                words = line.rstrip("\n").split(" ", 3)
                if words[0] == "memory":
                    peak = max(peak, int(words[1]))
                elif len(words) == 1:
                    begun = int(words[0])
                else:
                    number, begun = int(words[0]) + 1, None
                    verdicts[words[1]] += 1
                    by_kind[KINDS[int(words[0]) % len(KINDS)]] += 1
                    if words[1] in ("error", "stray") and len(examples) < 40:
                        examples.append(_example(int(words[0]), *words[1:]))
            code = child.wait()
            guard.end()
            if guard.out_of_time:
                break
            if begun is not None:  # It did not survive this one.
                verdicts["crash"] += 1
                by_kind[KINDS[begun % len(KINDS)]] += 1
                examples.append(_example(begun, "crash", "", f"exit status {code}"))
                number = begun + 1
            elif code and number < count:
                raise RuntimeError(f"The process that reads broken files cannot be started (exit status {code}).")
    bad = verdicts["error"] + verdicts["crash"] + verdicts["stray"]
    return {
        "inputs": sum(verdicts.values()),
        "by_kind": dict(by_kind),
        "verdicts": dict(verdicts),
        "failures": bad,
        "crashes": verdicts["crash"],
        "strays": verdicts["stray"],
        "peak_mb": peak,
        "examples": examples,
    }


def _example(number: int, verdict: str, how: str = "", said: str = "") -> dict[str, Any]:
    return {"number": number, "kind": KINDS[number % len(KINDS)], "verdict": verdict, "how": how, "said": said}


class _Guard:
    """Ends a process that says nothing for too long, or when the time is out."""

    def __init__(self, child: subprocess.Popen[str], deadline: float) -> None:
        self._child, self._deadline, self._last = child, deadline, time.monotonic()
        self.out_of_time, self._done = False, threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def heard(self) -> None:
        """It lives."""
        self._last = time.monotonic()

    def end(self) -> None:
        """Stop watching."""
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(1):
            now = time.monotonic()
            if now > self._deadline:
                self.out_of_time = True
            if self.out_of_time or now > self._last + _STALLED:
                self._child.kill()
                return


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
