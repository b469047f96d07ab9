"""Serve a SAM that sees slices without padding, as a program."""

from __future__ import annotations

import argparse

from baps.blackbox.remote.hosting import host
from baps.blackbox.sam import SamBlackBox
from tests.support.sam_networks import small_sam

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int)
parser.add_argument("--grpc-port", type=int)
arguments = parser.parse_args()
host(SamBlackBox(small_sam(), "small", "b" * 64), "small", "127.0.0.1", arguments.port, arguments.grpc_port)
