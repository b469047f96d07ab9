"""deploy/nginx.conf with Debian's nginx: TLS, a login, an image and a click, through to the real server."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from baps.roles import Role
from baps.users import Users
from server import ROOT, free_port
from sites import SAMPLES, Site, site, spleen_click

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
RECIPE = ROOT / "deploy" / "nginx.conf"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (NGINX and shutil.which("openssl")), reason="nginx or openssl is not installed"),
]


@dataclass(frozen=True)
class Proxied:
    """A server behind nginx.

    Attributes:
        site: the server, as the other tests have it.
        address: of nginx.
        plain: of nginx without TLS.
        certificate: that a client trusts.
        token: of an annotator.
        folder: of nginx's logs and other files.
    """

    site: Site
    address: str
    plain: str
    certificate: Path
    token: str
    folder: Path

    def ask(self, method: str, path: str, token: str = "", **sent: object) -> requests.Response:
        headers = {**({"Authorization": f"Bearer {token}"} if token else {}), **sent.pop("headers", {})}  # type: ignore[dict-item]
        return requests.request(
            method, self.address + path, headers=headers, timeout=60, allow_redirects=False,
            verify=str(self.certificate), **sent,  # type: ignore[arg-type]
        )  # fmt: skip

    def written(self) -> str:
        """All that nginx left in files."""
        return "".join(path.read_text(errors="replace") for path in self.folder.rglob("*") if path.is_file())


def _configured(folder: Path, server: str, port: int, plain: int) -> Path:
    """nginx's main file around the recipe, with ports, certificate and files of its own; nothing else is changed."""
    recipe = RECIPE.read_text()
    for stands, takes in {
        "listen 80;": f"listen 127.0.0.1:{plain};",
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "server_name baps.hospital;": "server_name localhost;",
        "/etc/ssl/certs/baps.pem": f"{folder}/cert.pem",
        "/etc/ssl/private/baps.key": f"{folder}/key.pem",
        "/var/log/nginx/": f"{folder}/",
        "http://127.0.0.1:8000": server,
    }.items():
        assert stands in recipe
        recipe = recipe.replace(stands, takes)
    kept = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file = folder / "nginx.conf"
    user = "user root;\n" if os.geteuid() == 0 else ""  # Only root reads the folder of a test.
    file.write_text(f"{user}pid {folder}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n{kept}{recipe}\n}}\n")
    return file


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    assert NGINX
    folder = tmp_path_factory.mktemp("proxied")
    users, own = Users(folder / "users.json"), folder / "nginx"
    token = users.add("anna", Role.ANNOTATOR)
    own.mkdir()
    made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=DNS:localhost", "-keyout", f"{own}/key.pem", "-out", f"{own}/cert.pem"]
    subprocess.run(["openssl", *made], check=True, capture_output=True)  # noqa: S607
    for running_site in site(folder, cases=1, others={"users": str(folder / "users.json")}):
        port, plain = free_port(), free_port()
        file = _configured(own, running_site.address, port, plain)
        checked = subprocess.run([NGINX, "-t", "-c", str(file)], capture_output=True, text=True)
        assert "test is successful" in checked.stderr, checked.stderr
        with (own / "said.log").open("w") as said:
            process = subprocess.Popen([NGINX, "-c", str(file), "-g", "daemon off;"], stderr=said)
        try:
            _wait(port)
            yield Proxied(
                running_site, f"https://localhost:{port}", f"http://localhost:{plain}", own / "cert.pem", token, own
            )
        finally:
            process.terminate()
            process.wait(30)


def _wait(port: int) -> None:
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError("nginx does not listen")


def test_slicer_signs_in_uploads_an_image_and_clicks(proxied: Proxied) -> None:
    assert proxied.ask("GET", "/info/").status_code == 401
    reply = proxied.ask("POST", "/auth/token", data={"username": "anna", "password": proxied.token})
    bearer = reply.json()["access_token"]
    assert proxied.ask("GET", "/info/", bearer).status_code == 200
    image = SAMPLES / "images" / "ct_02.nii.gz"
    with image.open("rb") as file:
        sent = proxied.ask("PUT", "/datastore/image?image=QZEBRA", bearer, files={"file": ("QZEBRA.nii.gz", file)})
    assert sent.status_code == 200, sent.text
    assert (proxied.site.studies / "QZEBRA.nii.gz").stat().st_size
    asked = {"params": json.dumps({"foreground": [spleen_click("ct_02")], "label": "spleen"})}
    mask = proxied.ask("POST", "/infer/baps?image=QZEBRA&output=image", bearer, data=asked)
    assert (mask.status_code, mask.headers["Cache-Control"]) == (200, "no-store")
    assert mask.content
    assert "QZEBRA" not in proxied.written()
    assert " PUT 200 " in (proxied.folder / "baps.log").read_text()


def test_a_browser_gets_a_cookie_for_tls_alone(proxied: Proxied) -> None:
    page = proxied.ask("GET", "/ohif/", headers={"Accept": "text/html"})
    assert (page.status_code, page.headers["Location"]) == (303, "/login?next=%2Fohif%2F")
    form, origin = {"username": "anna", "password": proxied.token, "next": "/ohif/"}, {"Origin": proxied.address}
    reply = proxied.ask("POST", "/login", data=form, headers={**origin, "Sec-Fetch-Site": "same-origin"})
    assert (reply.status_code, reply.headers["Location"]) == (303, "/ohif/")
    cookie = reply.headers["Set-Cookie"]
    assert "Secure" in cookie
    assert "HttpOnly" in cookie
    kept = {"Cookie": cookie.partition(";")[0], "Sec-Fetch-Site": "same-origin"}
    ohif = proxied.ask("GET", "/ohif/", headers=kept)
    assert (ohif.status_code, ohif.headers["Cache-Control"]) == (200, "no-store")
    assert proxied.ask("GET", "/ohif/app-config.js", headers=kept).headers["Cache-Control"] == "private, no-cache"


def test_what_nginx_says_of_its_own(proxied: Proxied) -> None:
    reply = proxied.ask("GET", "/auth/")
    assert reply.headers["Strict-Transport-Security"] == "max-age=31536000"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Server"] == "nginx"
    plain = requests.get(f"{proxied.plain}/info/?image=a", allow_redirects=False, timeout=30)
    assert (plain.status_code, plain.headers["Location"]) == (308, "https://localhost/info/?image=a")


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
def test_old_tls_is_refused(proxied: Proxied, version: str) -> None:
    where = proxied.address.removeprefix("https://")
    words = ["s_client", "-connect", where, version, "-cipher", "ALL:@SECLEVEL=0"]
    done = subprocess.run(["openssl", *words], input="", capture_output=True, text=True)  # noqa: S607
    assert done.returncode != 0
    assert "Cipher is (NONE)" in done.stdout


def test_paths_that_lead_elsewhere_are_refused_behind_it_too(proxied: Proxied) -> None:
    reply = proxied.ask("GET", "/proxy/dicom/wado/..%2fsystem", proxied.token)
    assert 400 <= reply.status_code < 500


def test_who_says_to_be_somebody_else_is_not_believed(proxied: Proxied) -> None:
    """Ten wrong logins from one address, whatever it says where it comes from: it has to wait. The last test."""
    wrong = {"username": "anna", "password": "baps_wrong"}
    for number in range(10):
        said = {"X-Forwarded-For": f"10.0.0.{number}", "Forwarded": f"for=10.0.0.{number}"}
        assert proxied.ask("POST", "/auth/token", data=wrong, headers=said).status_code == 401
    said = {"X-Forwarded-For": "10.0.0.99"}
    assert proxied.ask("POST", "/auth/token", data=wrong, headers=said).status_code == 429
