"""Run a server that listens on all addresses, but let only this machine reach it: loopback.py PORT COMMAND...

The command runs in a separate network namespace that has only a loopback interface, so other machines cannot reach any
of its ports. Connections to PORT on 127.0.0.1 of this machine are forwarded to it. This needs no root if the system
lets users create namespaces (``is_possible``).
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence

_SIOCSIFFLAGS, _IFF_UP_RUNNING = 0x8914, 0x41
_PR_SET_PDEATHSIG = 1
_INSIDE = "--inside"


def is_possible() -> bool:
    """Return whether the system lets this user create a network namespace."""
    unshare = shutil.which("unshare")
    return unshare is not None and subprocess.run([unshare, "-rn", "true"], capture_output=True).returncode == 0


def isolated_command(port: int, command: Sequence[str]) -> list[str]:
    """Return the command line that runs a server in a network namespace.

    Args:
        port: Port that the server listens on, and that 127.0.0.1 forwards to it.
        command: Command line of the server.

    Returns:
        The command line.
    """
    return [sys.executable, os.path.abspath(__file__), str(port), *command]  # noqa: PTH100


def _enter(port: int, command: Sequence[str]) -> None:
    """Listen on the loopback interface of this machine, and enter a new namespace with that socket."""
    listening = socket.create_server(("127.0.0.1", port))
    listening.set_inheritable(True)
    inside = [sys.executable, __file__, _INSIDE, str(listening.fileno()), str(port), *command]
    os.execvp("unshare", ["unshare", "-rn", *inside])  # noqa: S606, S607 (no shell; a program of the system)


async def _run_and_forward(listening: socket.socket, port: int, command: Sequence[str]) -> int:
    """Run the command and forward connections to it, until it ends or this process gets a signal."""
    with socket.socket() as any_socket:  # The loopback interface of a new namespace is down.
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP_RUNNING))
    child = await asyncio.create_subprocess_exec(*command, preexec_fn=_end_with_parent)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, child.terminate)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            target = await asyncio.open_connection("127.0.0.1", port)
        except OSError:  # It does not listen yet.
            writer.close()
            return
        await asyncio.gather(_copy(reader, target[1]), _copy(target[0], writer))

    async with await asyncio.start_server(forward, sock=listening):
        return await child.wait()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while content := await reader.read(1 << 16):
            writer.write(content)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    if sys.argv[1] == _INSIDE:
        inherited = socket.socket(fileno=int(sys.argv[2]))
        inherited.setblocking(False)
        sys.exit(asyncio.run(_run_and_forward(inherited, int(sys.argv[3]), sys.argv[4:])))
    _enter(int(sys.argv[1]), sys.argv[2:])
