"""The nginx configurations of deploy/ with Debian's nginx and the real server: TLS, login, upload, click."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import oidc_provider_mock
import pytest
import requests
from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException

from baps.site.roles import Role
from baps.site.users import Users
from tests.support import nginx
from tests.support.marks import starts
from tests.support.nginx import Nginx, running_nginx
from tests.support.sites import SAMPLES, Site, site, spleen_click

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(nginx.missing()), reason=nginx.missing()),
]


@dataclass(frozen=True)
class ProxiedSite:
    """A server behind nginx.

    Attributes:
        site: the server.
        nginx: the proxy in front of it.
        token: token of an annotator.
        root: path of the server behind nginx, or "".
    """

    site: Site
    nginx: Nginx
    token: str
    root: str = ""

    def request(self, method: str, path: str, token: str = "", **sent: object) -> requests.Response:
        headers = {**({"Authorization": f"Bearer {token}"} if token else {}), **sent.pop("headers", {})}  # type: ignore[dict-item]
        return requests.request(
            method, self.nginx.address + path, headers=headers, timeout=60, allow_redirects=False,
            verify=str(self.nginx.certificate), **sent,  # type: ignore[arg-type]
        )  # fmt: skip


@pytest.fixture(scope="module")
@starts("server")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxiedSite]:
    folder = tmp_path_factory.mktemp("proxied")
    users = Users(folder / "users.json")
    token = users.add("anna", Role.ANNOTATOR)
    for running_site in site(folder, cases=1, settings={"users": str(users.file)}):
        with running_nginx(folder / "nginx", nginx.HOST, running_site.address) as running:
            yield ProxiedSite(running_site, running, token)


@pytest.fixture(scope="module")
@starts("server")
def site_below(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, str]]:
    """Run a server with root path /baps, the user anna, and rita of an OpenID provider; yields it and anna's token."""
    folder = tmp_path_factory.mktemp("below")
    users = Users(folder / "users.json")
    token = users.add("anna", Role.ANNOTATOR)
    provider_users = [oidc_provider_mock.User(sub="rita", claims={"roles": ["radiologist"]})]
    with oidc_provider_mock.run_server_in_thread(user_claims=provider_users, require_nonce=True) as provider:
        openid = folder / "openid.json"
        client_settings = {"client_id": "baps", "client_secret": "hush", "roles": {"radiologist": "annotator"}}
        openid.write_text(json.dumps({"issuer": f"http://localhost:{provider.server_port}", **client_settings}))
        openid.chmod(0o600)
        settings = {"users": str(users.file), "openid": str(openid), "root_path": "/baps"}
        for running_site in site(folder, cases=2, settings=settings):
            yield running_site, token


@pytest.fixture(scope="module", params=[False, True], ids=["path kept", "path removed"])
def below(
    site_below: tuple[Site, str], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[ProxiedSite]:
    """Run nginx in front of the server, at /baps/."""
    running_site, token = site_below
    folder = tmp_path_factory.mktemp("nginx") / "nginx"
    with running_nginx(folder, nginx.PATH, running_site.address, strips_path=request.param) as running:
        yield ProxiedSite(running_site, running, token, "/baps")


def test_slicer_signs_in_uploads_an_image_and_clicks(proxied: ProxiedSite) -> None:
    assert proxied.request("GET", "/info/").status_code == 401
    reply = proxied.request("POST", "/auth/token", data={"username": "anna", "password": proxied.token})
    bearer = reply.json()["access_token"]
    assert proxied.request("GET", "/info/", bearer).status_code == 200
    image = SAMPLES / "images" / "ct_02.nii.gz"
    with image.open("rb") as file:
        sent = proxied.request("PUT", "/datastore/image?image=QZEBRA", bearer, files={"file": ("QZEBRA.nii.gz", file)})
    assert sent.status_code == 200, sent.text
    assert (proxied.site.studies / "QZEBRA.nii.gz").stat().st_size
    params = {"params": json.dumps({"foreground": [spleen_click("ct_02")], "label": "spleen"})}
    mask = proxied.request("POST", "/infer/baps?image=QZEBRA&output=image", bearer, data=params)
    assert (mask.status_code, mask.headers["Cache-Control"]) == (200, "no-store")
    assert mask.content
    assert "QZEBRA" not in proxied.nginx.written_files()
    assert " PUT 200 " in (proxied.nginx.folder / "baps.log").read_text()


def test_browser_gets_a_secure_cookie(proxied: ProxiedSite) -> None:
    page = proxied.request("GET", "/ohif/", headers={"Accept": "text/html"})
    assert (page.status_code, page.headers["Location"]) == (303, "/login?next=%2Fohif%2F")
    form, origin = {"username": "anna", "password": proxied.token, "next": "/ohif/"}, {"Origin": proxied.nginx.address}
    reply = proxied.request("POST", "/login", data=form, headers={**origin, "Sec-Fetch-Site": "same-origin"})
    assert (reply.status_code, reply.headers["Location"]) == (303, "/ohif/")
    cookie = reply.headers["Set-Cookie"]
    assert "Secure" in cookie
    assert "HttpOnly" in cookie
    cookie_headers = {"Cookie": cookie.partition(";")[0], "Sec-Fetch-Site": "same-origin"}
    ohif = proxied.request("GET", "/ohif/", headers=cookie_headers)
    assert (ohif.status_code, ohif.headers["Cache-Control"]) == (200, "no-store")
    assert (
        proxied.request("GET", "/ohif/app-config.js", headers=cookie_headers).headers["Cache-Control"]
        == "private, no-cache"
    )


def test_headers_and_redirect_of_nginx(proxied: ProxiedSite) -> None:
    reply = proxied.request("GET", "/auth/")
    assert reply.headers["Strict-Transport-Security"] == "max-age=31536000"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Server"] == "nginx"
    plain = requests.get(f"{proxied.nginx.http_address}/info/?image=a", allow_redirects=False, timeout=30)
    assert (plain.status_code, plain.headers["Location"]) == (308, "https://localhost/info/?image=a")


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
def test_old_tls_is_refused(proxied: ProxiedSite, version: str) -> None:
    host_and_port = proxied.nginx.address.removeprefix("https://")
    words = ["s_client", "-connect", host_and_port, version, "-cipher", "ALL:@SECLEVEL=0"]
    process = subprocess.run(["openssl", *words], input="", capture_output=True, text=True)  # noqa: S607
    assert process.returncode != 0
    assert "Cipher is (NONE)" in process.stdout


def test_path_traversal_is_refused_behind_nginx(proxied: ProxiedSite) -> None:
    reply = proxied.request("GET", "/proxy/dicom/wado/..%2fsystem", proxied.token)
    assert 400 <= reply.status_code < 500


def test_slicers_client_works_below_a_path(below: ProxiedSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "REQUESTS_CA_BUNDLE", str(below.nginx.certificate)
    )  # The client verifies certificates in sessions only.
    client = MONAILabelClient(f"{below.nginx.address}/baps/", tmpdir=str(tmp_path))
    assert client.auth_enabled()
    with pytest.raises(MONAILabelClientException, match="401"):
        client.info()
    client.update_auth(client.auth_token("anna", below.token))
    assert client.auth_valid_token()
    assert client.info()["labels"] == ["spleen", "liver"]
    assert client.next_sample("first", {})["id"] == "ct_01"
    file, reply = client.infer("baps", "ct_01", {"foreground": [spleen_click("ct_01")], "label": "spleen"})
    assert reply["slice"] == spleen_click("ct_01")[2]
    assert Path(file).stat().st_size
    name = f"new_{'off' if 'off' in str(below.nginx.folder) else len(list(below.site.studies.iterdir()))}"
    assert client.upload_image(str(SAMPLES / "images" / "ct_03.nii.gz"), name)["image"] == name
    client._headers.pop("content-length")  # Headers of the last request, which the session would send again.
    client._headers.pop("content-type")
    session = client.create_session(str(SAMPLES / "images" / "ct_04.nii.gz"))["session_id"]
    file, _ = client.infer("baps", "", {"foreground": [spleen_click("ct_04")]}, session_id=session)
    assert Path(file).stat().st_size
    saved = client.save_label(name, str(SAMPLES / "labels" / "ct_03.nii.gz"), params={"label_info": []})
    assert saved["label"] == name
    assert Path(client.download_label(name, "final")).stat().st_size


def test_browser_stays_below_the_path(below: ProxiedSite) -> None:
    assert below.request("GET", "/baps").headers["Location"].endswith("/baps/")
    html = {"Accept": "text/html"}
    sent = below.request("GET", "/baps/", headers=html)
    assert (sent.status_code, sent.headers["Location"]) == (303, "/baps/login?next=%2Fbaps%2F")
    assert 'action="/baps/login"' in below.request("GET", "/baps/login?next=/baps/", headers=html).text
    form, origin = {"username": "anna", "password": below.token}, {"Origin": below.nginx.address}
    for expected, target in (("/baps/docs", "/baps/docs"), ("/info/", "/baps/"), ("/baps/../x", "/baps/")):
        reply = below.request("POST", "/baps/login", data={**form, "next": expected}, headers=origin)
        assert (reply.status_code, reply.headers["Location"]) == (303, target)
    words = reply.headers["Set-Cookie"].split("; ")
    assert words[0].startswith("__Secure-baps=")
    assert {"Secure", "HttpOnly", "Path=/baps", "SameSite=strict"} <= set(words)
    cookie = {"Cookie": f"{words[0]}; __Secure-baps=of-a-shorter-path"}
    assert below.request("GET", "/baps/info", headers=cookie).headers["Location"] == f"{below.nginx.address}/baps/info/"
    assert below.request("GET", "/baps/info/", headers=cookie).ok
    page = below.request("GET", "/baps/", headers=cookie).text
    assert f"<code>{below.nginx.address}/baps</code>" in page
    assert "Signed in as anna" in page
    assert "/baps/openapi.json" in below.request("GET", "/baps/docs", headers=cookie).text
    assert below.request("GET", "/baps/openapi.json", headers=cookie).json()["servers"] == [{"url": "/baps"}]
    script = below.request("GET", "/baps/ohif/app-config.js", headers=cookie)
    assert script.headers["Cache-Control"] == "private, no-cache"
    assert "'/baps/proxy/dicom/wado'" in script.text
    out = below.request("POST", "/baps/logout", headers={**cookie, **origin})
    assert (out.headers["Location"], "Path=/baps" in out.headers["Set-Cookie"]) == ("/baps/login", True)
    assert below.request("GET", "/baps/info/", headers=cookie).status_code == 401


def test_openid_login_returns_below_the_path(below: ProxiedSite) -> None:
    browser = requests.Session()
    browser.verify, browser.trust_env = str(below.nginx.certificate), False
    home = f"{below.nginx.address}/baps"
    sent = browser.get(f"{home}/login/openid?next=/baps/docs", allow_redirects=False, timeout=60)
    (cookie,) = browser.cookies
    assert (cookie.path, cookie.secure) == ("/baps", True)
    back = browser.post(sent.headers["Location"], data={"sub": "rita"}, allow_redirects=False, timeout=60)
    assert back.headers["Location"].startswith(f"{home}/login/openid/return?")
    page = browser.get(back.headers["Location"], timeout=60)
    assert "Signed in as rita" in page.text
    assert 'content="0;url=/baps/docs"' in page.text
    assert "Signed in as rita" in browser.get(f"{home}/", timeout=60).text


@pytest.mark.parametrize(
    "path",
    [
        "/baps/baps/baps/audit",
        "/baps/%62aps/%61udit",
        "/baps/..%2faudit",
        "/baps/%2e%2e%2faudit",
        "/baps//audit",
        "/baps/login/../audit",
        "/baps/login%2f..%2faudit",
        "/baps/auth/%2e%2e/audit",
        "/%62aps/audit",
        "/baps/audit/",
        "/baps/audit%00",
        "/baps/login;/audit",
        "/baps\\audit",
        "//baps/audit",
    ],
)
def test_no_path_variant_opens_a_route_that_needs_a_role(below: ProxiedSite, path: str) -> None:
    """Neither without a token nor as an annotator, through nginx and directly; the path is sent unchanged."""
    for address in (below.nginx.address, below.site.address):
        for token in ("", below.token):
            session, headers = requests.Session(), {"Authorization": f"Bearer {token}"} if token else {}
            request = session.prepare_request(requests.Request("GET", address, headers=headers))
            request.url = address + path
            reply = session.send(request, timeout=60, allow_redirects=False, verify=str(below.nginx.certificate))
            assert reply.status_code != 200, path


def test_forged_forwarding_headers_are_ignored(proxied: ProxiedSite) -> None:
    """Ten wrong logins from one address are throttled, whatever its headers claim. This must be the last test."""
    wrong = {"username": "anna", "password": "baps_wrong"}
    for number in range(10):
        forwarded = {"X-Forwarded-For": f"10.0.0.{number}", "Forwarded": f"for=10.0.0.{number}"}
        assert proxied.request("POST", "/auth/token", data=wrong, headers=forwarded).status_code == 401
    forwarded = {"X-Forwarded-For": "10.0.0.99"}
    assert proxied.request("POST", "/auth/token", data=wrong, headers=forwarded).status_code == 429
