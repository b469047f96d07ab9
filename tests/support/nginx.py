"""Run Debian's nginx with a configuration of ``deploy/``, on this machine only."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from baps.demo.server import free_port
from tests.support.paths import ROOT

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
HOST = ROOT / "deploy" / "nginx.conf"
PATH = ROOT / "deploy" / "nginx-path.conf"


def missing() -> str:
    """Return what must be installed first, or ""."""
    return "" if NGINX and shutil.which("openssl") else "nginx or openssl is not installed: apt-get install nginx-light"


@dataclass(frozen=True)
class Nginx:
    """A running nginx.

    Attributes:
        address: address with TLS.
        http_address: address without TLS, if the configuration has one.
        certificate: certificate that clients must trust.
        folder: folder of its logs and other files.
    """

    address: str
    http_address: str
    certificate: Path
    folder: Path

    def written_files(self) -> str:
        """Return the content of all files that nginx has written."""
        return "".join(path.read_text(errors="replace") for path in self.folder.rglob("*") if path.is_file())


@contextmanager
def running_nginx(folder: Path, recipe: Path, server: str, strips_path: bool = False) -> Iterator[Nginx]:
    """Run nginx in front of a server. Of the configuration only ports, certificate, names and paths are replaced.

    Args:
        folder: folder for its files, which is created.
        recipe: configuration file of ``deploy/``.
        server: address of the server behind nginx.
        strips_path: whether nginx removes the path, which the configuration keeps.
    """
    assert NGINX
    folder.mkdir()
    options = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    options += ["-addext", "subjectAltName=DNS:localhost", "-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem"]
    subprocess.run(["openssl", *options], check=True, capture_output=True)  # noqa: S607
    port, http_port = free_port(), free_port()
    file = _write_nginx_config(folder, recipe, f"{server}/" if strips_path else server, port, http_port)
    checked = subprocess.run([NGINX, "-t", "-c", str(file)], capture_output=True, text=True)
    assert "test is successful" in checked.stderr, checked.stderr
    with (folder / "output.log").open("w") as output:
        process = subprocess.Popen([NGINX, "-c", str(file), "-g", "daemon off;"], stderr=output)
    try:
        _wait(port)
        yield Nginx(f"https://localhost:{port}", f"http://localhost:{http_port}", folder / "cert.pem", folder)
    finally:
        process.terminate()
        process.wait(30)


def _write_nginx_config(folder: Path, recipe: Path, server: str, port: int, http_port: int) -> Path:
    """Write nginx's main configuration around the one of ``deploy/``."""
    text = recipe.read_text()
    name = "baps.hospital" if recipe == HOST else "hospital"
    replaced = {
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        f"server_name {name};": "server_name localhost;",
        f"/etc/ssl/certs/{'baps' if recipe == HOST else name}.pem": f"{folder}/cert.pem",
        f"/etc/ssl/private/{'baps' if recipe == HOST else name}.key": f"{folder}/key.pem",
        "/var/log/nginx/": f"{folder}/",
        "proxy_pass http://127.0.0.1:8000;": f"proxy_pass {server};",
        **({"listen 80;": f"listen 127.0.0.1:{http_port};"} if recipe == HOST else {}),
    }
    for stands, takes in replaced.items():
        assert stands in text
        text = text.replace(stands, takes)
    without_path = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file = folder / "nginx.conf"
    user = "user root;\n" if os.geteuid() == 0 else ""  # Only root can read the folder of a test.
    file.write_text(f"{user}pid {folder}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n{without_path}{text}\n}}\n")
    return file


def _wait(port: int) -> None:
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError("nginx does not listen")
