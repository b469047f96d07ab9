"""Serve the cheap black box of the tests, as a program."""

from __future__ import annotations

import argparse
from dataclasses import replace

from baps.blackbox.remote.hosting import host
from tests.support.brightness import BrightnessBlackBox

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int)
parser.add_argument("--grpc-port", type=int)
parser.add_argument("--weights", default="b")
arguments = parser.parse_args()
black_box = BrightnessBlackBox()
black_box._capabilities = replace(black_box.capabilities, weights_sha256=arguments.weights * 64)
host(black_box, "brightness", "127.0.0.1", arguments.port, arguments.grpc_port)
