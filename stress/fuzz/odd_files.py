"""Read broken files with our readers: each one must be read, or refused with a sentence.

A separate process reads them; it is restarted after a file that ended it. ``python -m stress.fuzz.odd_files`` is this
process.
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

MAX_SECONDS = 20
"""Maximum seconds for one file."""

MAX_MEMORY_GROWTH_MB = 600
"""Maximum growth of the peak memory by one file, MB. Volumes may have 64 MB."""

KINDS = (
    "nifti", "nifti_gz", "nifti_label", "nrrd", "nrrd_gz", "metaimage", "metaimage_gz", "tiff", "tiff_gz", "dicom",
    "safetensors",
)  # fmt: skip
_STALL_SECONDS = 180


class _TooLongError(BaseException):
    """Raised after ``MAX_SECONDS``; no reader catches a BaseException."""


def read_one(kind: str, path: Path, image: Any) -> None:
    """Read a file as the server would: as an image, a label, or an adapter, which is also applied.

    Args:
        kind: a kind of ``KINDS``.
        path: the file.
        image: the volume that a label must fit.

    Raises:
        BapsError: if the file is refused.
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
    """Read the files with these numbers; print ``<number>`` before each one and ``<number> <verdict> ...`` after it."""
    from baps.errors import BapsError
    from baps.io import read_volume
    from stress.fuzz.mutations import mutant, seeds
    from stress.tally import is_sentence

    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    folder = Path.cwd()
    valid = seeds()
    (folder / "image.nii").write_bytes(valid["nifti"][1])
    image = read_volume(folder / "image.nii")
    (folder / "image.nii").unlink()

    def too_long(*_: object) -> None:
        raise _TooLongError

    signal.signal(signal.SIGALRM, too_long)
    peak_mb = _peak_mb()
    for number in range(begin, end):
        kind = KINDS[number % len(KINDS)]
        broken = mutant(kind, valid[kind], np.random.default_rng([seed, number]))
        path = folder / f"{number}{broken.suffix}"
        path.write_bytes(broken.content)
        print(number, flush=True)
        signal.alarm(MAX_SECONDS)
        message = ""
        try:
            read_one(kind, path, image)
            verdict = "answered"
        except BapsError as error:
            message = str(error)
            verdict = "refused" if is_sentence(message) and "\n" not in message[:20] else "error"
        except _TooLongError:
            verdict, message = "error", f"It took more than {MAX_SECONDS} seconds."
        except BaseException as error:  # Any other error would be a 500.
            verdict, message = "error", f"{type(error).__name__}: {error}"
        finally:
            signal.alarm(0)
        path.unlink(missing_ok=True)
        before, peak_mb = peak_mb, _peak_mb()
        if peak_mb > before + MAX_MEMORY_GROWTH_MB:
            verdict, message = "error", f"It took {peak_mb - before} MB."
        if list(folder.iterdir()):
            verdict, message = "stray", ", ".join(stray.name for stray in folder.iterdir())
        details = message.replace("\n", " ")[:300] if verdict in ("error", "stray") else ""
        print(number, verdict, broken.how.replace(" ", "_").replace(",_", "+"), details, flush=True)
    print("memory", peak_mb, flush=True)


def _peak_mb() -> int:
    """Return the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def fuzz_files(count: int, seed: int, seconds: float) -> dict[str, Any]:
    """Read broken files in child processes.

    Args:
        count: number of files.
        seed: seed of the mutations.
        seconds: maximum duration.

    Returns:
        ``inputs`` by kind and by verdict, ``failures``, ``crashes``, ``strays``, ``peak_mb``, and examples with the
        number that reproduces the file: ``mutant(kind, seeds()[kind], default_rng([seed, number]))``.
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
            child_folder = Path(tempfile.mkdtemp(dir=folder))
            command = [sys.executable, "-m", "stress.fuzz.odd_files", str(seed), str(number), str(count)]
            child = subprocess.Popen(
                command, cwd=child_folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            current = None
            assert child.stdout is not None
            watchdog = _Watchdog(child, deadline)
            for line in child.stdout:
                watchdog.record_output()
                words = line.rstrip("\n").split(" ", 3)
                if words[0] == "memory":
                    peak = max(peak, int(words[1]))
                elif len(words) == 1:
                    current = int(words[0])
                else:
                    number, current = int(words[0]) + 1, None
                    verdicts[words[1]] += 1
                    by_kind[KINDS[int(words[0]) % len(KINDS)]] += 1
                    if words[1] in ("error", "stray") and len(examples) < 40:
                        examples.append(_example(int(words[0]), *words[1:]))
            code = child.wait()
            watchdog.end()
            if watchdog.out_of_time:
                break
            if current is not None:  # This file ended the process.
                verdicts["crash"] += 1
                by_kind[KINDS[current % len(KINDS)]] += 1
                examples.append(_example(current, "crash", "", f"exit status {code}"))
                number = current + 1
            elif code and number < count:
                raise RuntimeError(f"The process that reads broken files cannot be started (exit status {code}).")
    failures = verdicts["error"] + verdicts["crash"] + verdicts["stray"]
    return {
        "inputs": sum(verdicts.values()),
        "by_kind": dict(by_kind),
        "verdicts": dict(verdicts),
        "failures": failures,
        "crashes": verdicts["crash"],
        "strays": verdicts["stray"],
        "peak_mb": peak,
        "examples": examples,
    }


def _example(number: int, verdict: str, how: str = "", message: str = "") -> dict[str, Any]:
    return {"number": number, "kind": KINDS[number % len(KINDS)], "verdict": verdict, "how": how, "said": message}


class _Watchdog:
    """Kills a process that prints nothing for too long, or when the time is up."""

    def __init__(self, child: subprocess.Popen[str], deadline: float) -> None:
        self._child, self._deadline, self._last = child, deadline, time.monotonic()
        self.out_of_time, self._done = False, threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def record_output(self) -> None:
        """Record that the process has printed something."""
        self._last = time.monotonic()

    def end(self) -> None:
        """Stop watching."""
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(1):
            now = time.monotonic()
            if now > self._deadline:
                self.out_of_time = True
            if self.out_of_time or now > self._last + _STALL_SECONDS:
                self._child.kill()
                return


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
