"""Serves the cheap black box of the tests, as a program."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from baps.blackbox.hosting import host
from conftest import BrightnessBlackBox

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int)
parser.add_argument("--grpc-port", type=int)
parser.add_argument("--weights", default="b")
given = parser.parse_args()
black_box = BrightnessBlackBox()
black_box._capabilities = replace(black_box.capabilities, weights_sha256=given.weights * 64)
host(black_box, "brightness", "127.0.0.1", given.port, given.grpc_port)
