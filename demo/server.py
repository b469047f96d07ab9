"""The server in a process of its own, see ``baps.demo.server``; and the repository."""

from __future__ import annotations

from pathlib import Path

from baps.demo.server import free_port, running, running_server

__all__ = ["ROOT", "free_port", "running", "running_server"]

ROOT = Path(__file__).resolve().parents[1]
