"""Replicas of the bundled model in real processes, which are killed and stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from baps.blackbox import load_black_box
from baps.blackbox.replica_process import ReplicaProcess
from baps.blackbox.replicas import ReplicatedBlackBox
from baps.errors import BapsError
from baps.prompts import Prompt

pytestmark = pytest.mark.slow

CLICK = Prompt(((60.0, 70.0),), ((20.0, 30.0),))


@pytest.fixture
def replicated() -> Iterator[ReplicatedBlackBox]:
    black_box = load_black_box(device="cpu,cpu")
    assert isinstance(black_box, ReplicatedBlackBox)
    replicas = list(black_box._replicas)
    yield black_box
    for replica in replicas:
        replica.stop()


def _images(count: int, side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3)).astype(np.uint8)


def _processes(black_box: ReplicatedBlackBox) -> list[ReplicaProcess]:
    return [replica for replica in black_box._replicas if isinstance(replica, ReplicaProcess)]


def _wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().split(")")[-1].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError(f"Process {pid} is still there.")


def test_killed_and_stopped_replicas_are_taken_out_without_changing_the_masks(
    replicated: ReplicatedBlackBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = replicated.capabilities.input_size
    images, prompts, threads = _images(20, side), [CLICK] * 20, torch.get_num_threads()
    torch.set_num_threads(1)  # As in the replicas.
    try:
        expected = load_black_box(device="cpu").segment(images, prompts)
    finally:
        torch.set_num_threads(threads)
    assert [process.pid for process in _processes(replicated)] == [None, None]  # They start with the first call.
    np.testing.assert_array_equal(replicated.segment(images, prompts), expected)
    first, second = _processes(replicated)
    assert first.pid
    assert second.pid

    os.kill(first.pid, signal.SIGKILL)
    np.testing.assert_array_equal(replicated.segment(images, prompts), expected)
    (sentence,) = replicated.removed_replicas
    assert sentence.startswith("Replica 1 on cpu of the model bundled was killed by signal 9.")

    monkeypatch.setattr("baps.blackbox.replicas._MIN_SECONDS", 1)
    monkeypatch.setattr("baps.blackbox.replicas._TIMES_SLOWEST", 0)
    os.kill(second.pid, signal.SIGSTOP)
    with pytest.raises(BapsError, match=r"No replica .* is left. Replica 2 on cpu .* did not answer within 1 s"):
        replicated.segment(images, prompts)
    _wait_until_gone(second.pid)
    assert replicated.images_queried == 3 * 20
    encoding = replicated.encode(images[0])  # Clicks are still answered.
    assert replicated.decode(encoding, CLICK).shape == (side, side)


def test_replicas_end_with_their_parent() -> None:
    """Even if it has no time to end them."""
    program = (
        "import numpy as np, time; from baps.blackbox import *; box = load_black_box(device='cpu,cpu'); "
        "side = box.capabilities.input_size; "
        "box.segment(np.zeros((1, side, side, 3), np.uint8), [Prompt(((5, 5),))]); "
        "print(*[replica.pid for replica in box._replicas], flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
    finally:
        parent.kill()
        parent.wait()
    for pid in pids:
        _wait_until_gone(pid)


def test_weights_that_changed_since_the_start_are_refused(replicated: ReplicatedBlackBox) -> None:
    for process in _processes(replicated):
        process._arguments = ("bundled", None, "0" * 64, "cpu")
    with pytest.raises(BapsError, match="No replica.*SHA-256"):
        replicated.segment(_images(1, replicated.capabilities.input_size), [CLICK])
