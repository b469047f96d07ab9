"""Run a server that listens on every address so that this machine alone reaches it: loopback.py PORT COMMAND...

The command runs in a network namespace of its own, in which there is nothing but loopback; whatever ports it opens, and
on whatever addresses, nobody else sees them. One of them, PORT, is passed on from 127.0.0.1 of this machine. That needs
no root where the system lets users make namespaces (``possible``).
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


def possible() -> bool:
    """Return whether the system lets this user make a network namespace."""
    unshare = shutil.which("unshare")
    return unshare is not None and subprocess.run([unshare, "-rn", "true"], capture_output=True).returncode == 0


def command_within(port: int, command: Sequence[str]) -> list[str]:
    """Return the command line that runs a command so.

    Args:
        port: that it listens on, and that is reached at 127.0.0.1.
        command: of the server.
    """
    return [sys.executable, os.path.abspath(__file__), str(port), *command]  # noqa: PTH100


def _enter(port: int, command: Sequence[str]) -> None:
    """Listen on this machine's loopback, and go into a new namespace with that socket."""
    listening = socket.create_server(("127.0.0.1", port))
    listening.set_inheritable(True)
    inside = [sys.executable, __file__, _INSIDE, str(listening.fileno()), str(port), *command]
    os.execvp("unshare", ["unshare", "-rn", *inside])  # noqa: S606, S607 (no shell; the system's own)


async def _serve(listening: socket.socket, port: int, command: Sequence[str]) -> int:
    """Run the command and pass on connections until it ends, or this process is told to."""
    with socket.socket() as any_socket:  # Loopback is down in a new namespace.
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP_RUNNING))
    child = await asyncio.create_subprocess_exec(*command, preexec_fn=_end_with_parent)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, child.terminate)

    async def passed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection("127.0.0.1", port)
        except OSError:  # It does not listen yet.
            writer.close()
            return
        await asyncio.gather(_pass(reader, there[1]), _pass(there[0], writer))

    async with await asyncio.start_server(passed_on, sock=listening):
        return await child.wait()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
        given = socket.socket(fileno=int(sys.argv[2]))
        given.setblocking(False)
        sys.exit(asyncio.run(_serve(given, int(sys.argv[3]), sys.argv[4:])))
    _enter(int(sys.argv[1]), sys.argv[2:])
