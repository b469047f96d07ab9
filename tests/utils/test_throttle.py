"""Training waits for clicks.

No test depends on the speed of the machine: it checks that a thread waits, and then releases it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from baps.utils.throttle import inference_lock, wait_for_idle
from tests.support.paths import ROOT

_UNLIMITED = 600.0
"""A maximum wait that no test reaches."""

_PATHS = {**os.environ, "PYTHONPATH": str(ROOT / "apps" / "baps_app")}


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "adapters" / "clicks.lock"


@contextmanager
def _in_a_thread(wait: Callable[[], None]) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    yield thread


def _returns(function: Callable[[], None]) -> bool:
    """Call a function in a thread, and say whether it returned within a minute."""
    with _in_a_thread(function) as running:
        running.join(60)
    return not running.is_alive()


@contextmanager
def _process(source: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Start a Python process, wait until it has printed "ready", and kill it at the end."""
    command = [sys.executable, "-c", source, *map(str, arguments)]
    with subprocess.Popen(command, env=_PATHS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


_CLICKS = """
import sys
from pathlib import Path
from baps.utils.throttle import inference_lock
with inference_lock(Path(sys.argv[1])):
    print("ready", flush=True)
    sys.stdin.readline()
print("done", flush=True)
sys.stdin.readline()
"""


def test_training_does_not_wait_without_clicks(lock: Path) -> None:
    wait = wait_for_idle(lock, _UNLIMITED)
    for _ in range(3):
        assert _returns(wait)


def test_training_does_not_wait_after_a_click(lock: Path) -> None:
    with inference_lock(lock):
        pass
    assert _returns(wait_for_idle(lock, _UNLIMITED))


def test_training_does_not_wait_after_a_click_that_failed(lock: Path) -> None:
    with pytest.raises(ZeroDivisionError), inference_lock(lock):
        _ = 1 / 0
    assert _returns(wait_for_idle(lock, _UNLIMITED))


def test_training_waits_for_a_thread_that_clicks(lock: Path) -> None:
    with inference_lock(lock), _in_a_thread(wait_for_idle(lock, _UNLIMITED)) as waiting:
        waiting.join(0.2)
        assert waiting.is_alive()
    waiting.join(60)
    assert not waiting.is_alive()


def test_training_waits_for_a_process_that_clicks(lock: Path) -> None:
    with _process(_CLICKS, lock) as process, _in_a_thread(wait_for_idle(lock, _UNLIMITED)) as waiting:
        waiting.join(0.2)
        assert waiting.is_alive()
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        waiting.join(60)
        assert not waiting.is_alive()
        assert process.poll() is None  # The process released the lock but did not end.


def test_training_waits_for_the_last_of_several_clicks(lock: Path) -> None:
    with ExitStack() as first, inference_lock(lock):
        first.enter_context(inference_lock(lock))  # Several may click at once.
        with _process(_CLICKS, lock) as process, _in_a_thread(wait_for_idle(lock, _UNLIMITED)) as waiting:
            first.close()
            waiting.join(0.2)
            assert waiting.is_alive()
            process.kill()
            process.wait()
            waiting.join(0.2)
            assert waiting.is_alive()
    waiting.join(60)
    assert not waiting.is_alive()


def test_process_killed_during_a_click_releases_the_lock(lock: Path) -> None:
    with _process(_CLICKS, lock) as process, _in_a_thread(wait_for_idle(lock, _UNLIMITED)) as waiting:
        waiting.join(0.2)
        assert waiting.is_alive()
        process.send_signal(signal.SIGKILL)
        waiting.join(60)
        assert not waiting.is_alive()


def test_training_continues_after_the_maximum_wait(lock: Path) -> None:
    with inference_lock(lock):
        start = time.monotonic()
        wait_for_idle(lock, 0.3)()
        assert time.monotonic() - start >= 0.3
        wait_for_idle(lock, 0)()


def test_training_waits_again_after_a_maximum_wait(lock: Path) -> None:
    wait = wait_for_idle(lock, 0.2)
    with inference_lock(lock):
        for _ in range(2):
            start = time.monotonic()
            wait()
            assert time.monotonic() - start >= 0.2


def test_training_does_not_delay_a_click(lock: Path) -> None:
    """``wait_for_idle`` holds nothing once it has returned."""

    def click() -> None:
        with inference_lock(lock):
            pass

    assert _returns(wait_for_idle(lock, _UNLIMITED))
    with inference_lock(lock), _in_a_thread(wait_for_idle(lock, _UNLIMITED)) as waiting:
        assert _returns(click)
        assert waiting.is_alive()
    waiting.join(60)
    assert not waiting.is_alive()


def test_no_wait_without_a_lock_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for lock in (tmp_path / "file" / "clicks.lock", tmp_path):
        entered = False
        with inference_lock(lock):
            entered = True
            assert _returns(wait_for_idle(lock, _UNLIMITED))
        assert entered
        with pytest.raises(OSError, match="of the click"), inference_lock(lock):
            raise OSError("of the click")
    assert (tmp_path / "file").read_text() == "mine"


_LOWERS_PRIORITY = """
import os, sys, threading, time
from pathlib import Path
from baps.utils.throttle import lower_priority
for _ in range(3):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
lower_priority()
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
tasks = [int(task.name) for task in Path("/proc/self/task").iterdir()]
values = " ".join(str(os.getpriority(os.PRIO_PROCESS, task)) for task in tasks)
os.write(1, f"ready\\n{values}\\n".encode())  # In one write: the reader may be gone before a second one.
time.sleep(600)
"""

_PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
assert child.stdout.readline() == "ready\\n"
print("ready", child.pid, sep="\\n", flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux alone")
def test_every_thread_gets_the_lowest_priority() -> None:
    with _process(_LOWERS_PRIORITY) as process:
        assert process.stdout is not None
        assert process.stdout.readline().split() == ["19"] * 5
        process.stdin.close()  # type: ignore[union-attr]
    assert os.getpriority(os.PRIO_PROCESS, 0) < 19


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux ends a child with its parent")
def test_training_ends_with_a_killed_server() -> None:
    with _process(_PARENT, _LOWERS_PRIORITY) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert _runs(child)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 60
        while _runs(child) and time.monotonic() < deadline:
            time.sleep(0.01)
        alive = _runs(child)
        if alive:
            os.kill(child, signal.SIGKILL)
        assert not alive


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux ends a child with its parent")
def test_child_survives_without_lower_priority() -> None:
    """This shows that the test above can fail."""
    stays = 'import time; print("ready", flush=True); time.sleep(600)'
    with _process(_PARENT, stays) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        time.sleep(0.3)
        alive = _runs(child)
        if alive:
            os.kill(child, signal.SIGKILL)
        assert alive


_IN_A_CONTAINER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], *sys.argv[2:]], stdout=subprocess.PIPE, text=True)
print(child.stdout.read(), flush=True)
"""

_SERVED_BY_1 = """
import os
from baps.utils.throttle import lower_priority
assert os.getppid() == 1
lower_priority()
print("trains", os.getpriority(os.PRIO_PROCESS, 0))
"""

_ORPHAN = """
import os, time
from baps.utils.throttle import lower_priority
while os.getppid() != 1:
    time.sleep(0.01)
lower_priority()
print("trains")
"""

_DIES = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True, stderr=subprocess.STDOUT)
"""


def _as_process_1(source: str, *arguments: str) -> str:
    """Run a child of process 1, as a server is in a container; return its output."""
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    try:
        subprocess.run([*unshare, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to make process namespaces")
    command = [*unshare, sys.executable, "-c", _IN_A_CONTAINER, source, *arguments]
    process = subprocess.run(command, env=_PATHS, capture_output=True, text=True, timeout=60, check=True)
    return process.stdout.strip()


def test_a_server_that_is_process_1_can_train() -> None:
    assert _as_process_1(_SERVED_BY_1) == "trains 19"


def test_training_does_not_start_if_its_server_died() -> None:
    assert _as_process_1(_DIES, _ORPHAN) == "The server is gone; the training ends with it."
