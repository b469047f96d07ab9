"""Authentication and roles of the real server, with 3D Slicer's client, an OpenID provider and plain HTTP."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import oidc_provider_mock
import pytest
import requests
from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException
from numpy.typing import NDArray

from baps.annotations.history import LabelHistory
from baps.imaging.volume import Volume
from baps.io import read_volume, write_nifti
from baps.site.roles import Role
from baps.site.users import Users
from tests.support.client import threaded_site
from tests.support.sites import Site, spleen_click


@dataclass(frozen=True)
class SiteWithLogin:
    """A server that requires a login.

    Attributes:
        site: The server.
        users: Its users.
        tokens: Tokens of the users ``anna``, ``theo`` and ``root``: an annotator, a trainer and an admin.
        issuer: Address of the OpenID provider.
    """

    site: Site
    users: Users
    tokens: Mapping[str, str]
    issuer: str

    def ask(self, method: str, path: str, token: str = "", **options: object) -> requests.Response:
        headers = {**({"Authorization": f"Bearer {token}"} if token else {}), **options.pop("headers", {})}  # type: ignore[dict-item]
        return requests.request(
            method, self.site.address + path, headers=headers, timeout=60, allow_redirects=False, **options  # type: ignore[arg-type]
        )  # fmt: skip

    def audit(self) -> list[dict[str, object]]:
        time.sleep(0.5)  # The line is written after the response is sent.
        return [json.loads(line) for line in (self.site.adapters / "audit.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def with_login(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteWithLogin]:
    folder = tmp_path_factory.mktemp("with_login")
    users = Users(folder / "users.json")
    roles = {"anna": Role.ANNOTATOR, "theo": Role.TRAINER, "root": Role.ADMIN}
    tokens = {name: users.add(name, role) for name, role in roles.items()}
    known = [
        oidc_provider_mock.User(sub="rita", claims={"roles": ["radiologist"], "preferred_username": "Rita R"}),
        oidc_provider_mock.User(sub="nobody", claims={"roles": ["cook"]}),
    ]
    with oidc_provider_mock.run_server_in_thread(user_claims=known, require_nonce=True) as provider:
        issuer = f"http://localhost:{provider.server_port}"
        openid = folder / "openid.json"
        openid.write_text(
            json.dumps(
                {"issuer": issuer, "client_id": "baps", "client_secret": "hush", "roles": {"radiologist": "annotator"}}
            )
        )
        openid.chmod(0o600)
        settings = {"users": str(users.file), "openid": str(openid)}
        with threaded_site(folder, cases=2, settings=settings) as running:
            yield SiteWithLogin(running, users, tokens, issuer)


# 3D Slicer.


def test_slicer_client_signs_in(with_login: SiteWithLogin, tmp_path: Path) -> None:
    client = MONAILabelClient(with_login.site.address, tmpdir=str(tmp_path))
    assert client.auth_enabled()
    assert not client.auth_valid_token()
    with pytest.raises(MONAILabelClientException, match="401"):
        client.info()
    client.update_auth(client.auth_token("anna", with_login.tokens["anna"]))
    assert client.auth_valid_token()
    assert client.info()["labels"] == ["spleen", "liver"]
    _, params = client.infer("baps", "ct_01", {"foreground": [spleen_click("ct_01")]})
    assert params["slice"] == spleen_click("ct_01")[2]
    with pytest.raises(MONAILabelClientException, match="you need the role trainer; yours is annotator"):
        client.train_start("baps", {})
    lines = {(line["user"], line["what"], line["status"], line["by"]) for line in with_login.audit()}
    assert {("anna", "segment", 200, "token"), ("anna", "start a training", 403, "token")} <= lines
    assert "ct_01" not in json.dumps(with_login.audit())


@pytest.mark.parametrize(
    ("name", "secret"), [("anna", "wrong"), ("anna", ""), ("theo", "anna's"), ("", "anna's"), ("root", "' or 1=1")]
)
def test_a_wrong_password_is_refused(with_login: SiteWithLogin, name: str, secret: str) -> None:
    secret = with_login.tokens["anna"] if secret == "anna's" else secret  # noqa: S105
    reply = with_login.ask("POST", "/auth/token", data={"username": name, "password": secret})
    # The provider may know other users, but it accepts no passwords.
    assert reply.status_code == (401 if name else 400), reply.text
    assert reply.json()["detail"]


def test_a_removed_user_is_signed_out_at_once(with_login: SiteWithLogin) -> None:
    token = with_login.users.add("bert", Role.ANNOTATOR)
    browser = requests.Session()
    assert browser.post(f"{with_login.site.address}/login", data={"username": "bert", "password": token}).ok
    assert browser.get(f"{with_login.site.address}/info/").ok
    assert with_login.ask("GET", "/info/", token).ok
    with_login.users.remove("bert")
    assert with_login.ask("GET", "/info/", token).status_code == 401
    assert browser.get(f"{with_login.site.address}/info/").status_code == 401


# Roles.


def test_every_endpoint_without_a_token_answers_401(with_login: SiteWithLogin) -> None:
    """The endpoints of MONAI Label and of BAPS, and some that do not exist."""
    described = with_login.ask("GET", "/openapi.json", with_login.tokens["anna"]).json()["paths"]
    requested = [(method.upper(), path) for path, methods in described.items() for method in methods]
    requested += [("GET", "/ohif/"), ("GET", "/static/x"), ("GET", "/"), ("GET", "/docs"), ("GET", "/nothing")]
    requested += [("GET", "/proxy/dicom/studies"), ("POST", "/proxy/dicom/studies"), ("OPTIONS", "/info/")]
    public = {("GET", "/auth/"), ("POST", "/auth/token"), ("GET", "/login"), ("POST", "/login"), ("GET", "/logout"),
              ("POST", "/logout"), ("GET", "/login/openid"), ("GET", "/login/openid/return"),
              ("GET", "/favicon.ico")}  # fmt: skip
    assert len(requested) > 30
    for method, path in set(requested) - public:
        path = re.sub(r"{\w+(:path)?}", "x", path)
        reply = with_login.ask(method, path)
        assert reply.status_code == 401, (method, path, reply.status_code)
        assert "Sign in first" in reply.text or method == "HEAD"


@pytest.mark.parametrize(
    ("method", "path", "needed"),
    [
        ("POST", "/train/nothing", "trainer"),
        ("POST", "/train/", "trainer"),
        ("DELETE", "/train/", "trainer"),
        ("PUT", "/datastore/image?image=x", "annotator"),
        ("PUT", "/datastore/?image=x", "annotator"),
        ("GET", "/audit", "admin"),
    ],
)
def test_requests_need_a_role(with_login: SiteWithLogin, method: str, path: str, needed: str) -> None:
    order = ["annotator", "trainer", "admin"]
    for name, role in zip(("anna", "theo", "root"), order, strict=True):
        reply = with_login.ask(method, path, with_login.tokens[name])
        if order.index(role) < order.index(needed):
            assert (reply.status_code, f"you need the role {needed}" in reply.text) == (403, True)
        else:
            assert reply.status_code not in (401, 403), reply.text


def test_unserved_requests_are_refused_even_for_admins(with_login: SiteWithLogin) -> None:
    for method, path in (("DELETE", "/datastore/image?id=ct_01"), ("PUT", "/model/baps"), ("POST", "/reload")):
        assert with_login.ask(method, path, with_login.tokens["root"]).status_code == 403


@pytest.mark.parametrize(
    "header", ["Bearer", "Bearer ", "Basic YTpi", "bearer x", "Bearer a.b.c", "Token x", "Bearer \xff"]
)
def test_malformed_authorization_headers_are_refused(with_login: SiteWithLogin, header: str) -> None:
    reply = with_login.ask("GET", "/info/", headers={"Authorization": header.encode("latin-1")})
    assert reply.status_code in (401, 429)


# A browser.


def _signed_in(with_login: SiteWithLogin, name: str = "anna", **headers: str) -> requests.Response:
    form = {"username": name, "password": with_login.tokens[name], "next": "/info/"}
    return with_login.ask("POST", "/login", data=form, headers=headers)


def test_a_browser_is_redirected_to_the_login_page_and_back(with_login: SiteWithLogin) -> None:
    page = "/ohif/viewer?StudyInstanceUIDs=1.2.3"
    redirect = with_login.ask("GET", page, headers={"Accept": "text/html,*/*"})
    assert redirect.status_code == 303
    reply = with_login.ask("GET", redirect.headers["Location"])
    assert 'value="/ohif/viewer?StudyInstanceUIDs=1.2.3"' in reply.text
    policy = reply.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "http" not in re.sub(r"http-equiv", "", reply.text)  # Nothing is fetched from elsewhere.
    assert "<script" not in reply.text


def test_the_cookie_is_restricted_to_this_server(with_login: SiteWithLogin) -> None:
    reply = _signed_in(with_login)
    assert (reply.status_code, reply.headers["Location"]) == (303, "/info/")
    cookie = reply.headers["Set-Cookie"]
    assert {"HttpOnly", "Path=/", "SameSite=strict"} <= set(cookie.split("; "))
    assert with_login.tokens["anna"] not in cookie
    assert "Domain" not in cookie
    secure = _signed_in(with_login, **{"X-Forwarded-Proto": "https"}).headers[
        "Set-Cookie"
    ]  # A proxy on this machine says so.
    assert "Secure" in secure
    assert secure.startswith("__Host-")


@pytest.mark.parametrize(
    "target",
    [
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "javascript:alert(1)",
        "/a\r\nX: y",
        "",
        "\\\\e",
        "/login",
    ],
)
def test_the_login_page_redirects_to_this_server_only(with_login: SiteWithLogin, target: str) -> None:
    form = {"username": "anna", "password": with_login.tokens["anna"], "next": target}
    reply = with_login.ask("POST", "/login", data=form)
    assert (reply.status_code, reply.headers["Location"]) == (303, "/")


def test_the_login_page_escapes_its_input(with_login: SiteWithLogin) -> None:
    for attack in ('"><script>alert(1)</script>', "{{ 7*7 }}"):
        reply = with_login.ask("GET", "/login", params={"next": f"/{attack}"})
        assert "<script" not in reply.text
        assert "49" not in re.sub(r"nonce[^>]*>", "", reply.text).split("<main>")[1]


def test_a_cookie_authenticates_only_pages_of_this_server(with_login: SiteWithLogin) -> None:
    cookie = {"Cookie": _signed_in(with_login, "theo").headers["Set-Cookie"].split(";")[0]}
    own = {"Origin": with_login.site.address}
    assert with_login.ask("GET", "/info/", headers=cookie).ok
    assert with_login.ask("GET", "/info/", headers={**cookie, "Sec-Fetch-Site": "same-origin"}).ok
    for foreign in ("cross-site", "same-site"):
        assert with_login.ask("GET", "/info/", headers={**cookie, "Sec-Fetch-Site": foreign}).status_code == 403
    change = ("POST", "/train/nothing")
    assert with_login.ask(*change, headers=cookie).status_code == 401  # It does not name its origin.
    assert with_login.ask(*change, headers={**cookie, "Sec-Fetch-Site": "cross-site", **own}).status_code == 403
    assert with_login.ask(*change, headers={**cookie, "Origin": "http://evil.example"}).status_code == 403
    assert with_login.ask(*change, headers={**cookie, "Origin": "null"}).status_code == 403
    assert with_login.ask(*change, headers={**cookie, **own}).status_code == 404  # There is no such trainer.


def test_signing_out_ends_the_session(with_login: SiteWithLogin) -> None:
    cookie = {"Cookie": _signed_in(with_login).headers["Set-Cookie"].split(";")[0]}
    with_login.ask("GET", "/logout", headers={**cookie, "Sec-Fetch-Site": "cross-site"})
    assert with_login.ask("GET", "/info/", headers=cookie).ok
    reply = with_login.ask("POST", "/logout", headers={**cookie, "Origin": with_login.site.address})
    assert (reply.status_code, reply.headers["Location"]) == (303, "/login")
    assert with_login.ask("GET", "/info/", headers=cookie).status_code == 401
    assert with_login.audit()[-1]["what"] == "sign out"


# The OpenID provider.


def _at_provider(with_login: SiteWithLogin, browser: requests.Session, user: str) -> str:
    """Sign in at the provider, and return the address to which it redirects the browser."""
    redirect = browser.get(f"{with_login.site.address}/login/openid?next=/info/", allow_redirects=False, timeout=60)
    assert redirect.status_code == 303
    address = redirect.headers["Location"]
    query = parse_qs(urlsplit(address).query)
    assert (query["code_challenge_method"], len(query["code_challenge"][0])) == (["S256"], 43)
    assert address.startswith(with_login.issuer)
    return browser.post(address, data={"sub": user}, allow_redirects=False, timeout=60).headers["Location"]


def test_a_user_signs_in_through_the_provider(with_login: SiteWithLogin) -> None:
    browser = requests.Session()
    back = _at_provider(with_login, browser, "rita")
    page = browser.get(back, timeout=60)
    assert "Signed in as Rita R" in page.text
    assert 'content="0;url=/info/"' in page.text
    assert browser.get(f"{with_login.site.address}/info/", timeout=60).ok
    valid = browser.get(f"{with_login.site.address}/auth/token/valid", timeout=60).json()
    assert (valid["username"], valid["roles"]) == ("Rita R", ["annotator"])
    line = [line for line in with_login.audit() if line["what"] == "sign in"][-1]
    assert (line["user"], line["by"], line["status"]) == ("Rita R", "openid", 200)
    again = browser.get(back, timeout=60)
    assert (again.status_code, "did not begin here" in again.text) == (400, True)


def test_a_provider_user_without_a_role_is_refused(with_login: SiteWithLogin) -> None:
    browser = requests.Session()
    reply = browser.get(_at_provider(with_login, browser, "nobody"), timeout=60)
    assert (reply.status_code, "no role" in reply.text) == (403, True)
    assert browser.get(f"{with_login.site.address}/info/", timeout=60).status_code == 401


def test_a_sign_in_cannot_be_finished_in_another_browser(with_login: SiteWithLogin) -> None:
    """Neither an attacker's code in a victim's browser, nor a victim's code with another state."""
    attacker, victim = requests.Session(), requests.Session()
    back = _at_provider(with_login, attacker, "rita")
    assert victim.get(back, timeout=60).status_code == 400
    victim_address, other_address = (
        _at_provider(with_login, browser, "rita") for browser in (victim, requests.Session())
    )
    mixed = victim_address.replace(
        parse_qs(urlsplit(victim_address).query)["state"][0], parse_qs(urlsplit(other_address).query)["state"][0]
    )
    assert victim.get(mixed, timeout=60).status_code == 400
    assert victim.get(f"{with_login.site.address}/info/", timeout=60).status_code == 401


def test_an_invalid_authorization_code_is_refused(with_login: SiteWithLogin) -> None:
    browser = requests.Session()
    back = _at_provider(with_login, browser, "rita")
    code = parse_qs(urlsplit(back).query)["code"][0]
    reply = browser.get(back.replace(code, "invented"), timeout=60)
    assert (reply.status_code, "refused the sign-in" in reply.text) == (401, True)


def test_a_provider_without_password_grant_is_reported(with_login: SiteWithLogin) -> None:
    reply = with_login.ask("POST", "/auth/token", data={"username": "rita", "password": "open sesame"})
    assert (reply.status_code, "baps users add" in reply.json()["detail"]) == (400, True)


# At the end, because later logins from this machine's address are throttled.


def test_failed_logins_are_throttled_and_valid_tokens_are_not(with_login: SiteWithLogin) -> None:
    before = len(with_login.audit())
    statuses = [
        with_login.ask("POST", "/auth/token", data={"username": "anna", "password": f"{n}"}).status_code
        for n in range(25)
    ]
    assert set(statuses) == {401, 429}
    assert statuses == sorted(statuses)
    assert len(with_login.audit()) - before <= 2  # One of each status: the others are counted.
    wrong = with_login.ask("POST", "/login", data={"username": "Anna", "password": "b"})
    assert (wrong.status_code, int(wrong.headers["Retry-After"]) <= 300) == (429, True)
    assert "Too many sign-ins failed" in wrong.text
    for name in ("anna", "theo"):
        assert with_login.ask("POST", "/auth/token", data={"username": name, "password": with_login.tokens[name]}).ok
    assert _signed_in(with_login).status_code == 303
    for number in range(15):
        with_login.ask("GET", "/info/", f"invented {number}")
    assert with_login.ask("GET", "/info/", with_login.tokens["anna"]).ok
    started = time.perf_counter()
    assert with_login.ask("GET", "/info/", "invented").status_code == 429
    assert time.perf_counter() - started < 5


def test_only_a_trainer_may_replace_the_label_of_another_annotator(with_login: SiteWithLogin, tmp_path: Path) -> None:
    """A label of an annotator is disputed, whatever the request contains."""
    image = read_volume(with_login.site.studies / "ct_02.nii.gz")
    mask_of_theo = np.zeros(image.shape, bool)
    mask_of_theo[20:30, 20:30, 4:8] = True

    def save(user: str, mask: NDArray[np.bool_], **extra: object) -> list[str]:
        write_nifti(tmp_path / "label.nii.gz", Volume(mask.astype(np.uint8), image.affine))
        params = {"label_info": [{"name": "liver", "idx": 1}], "author": "theo", **extra}
        reply = with_login.ask(
            "PUT",
            "/datastore/label?image=ct_02",
            with_login.tokens[user],
            data={"params": json.dumps(params)},
            files={"label": ("label.nii.gz", (tmp_path / "label.nii.gz").read_bytes())},
        )
        assert reply.status_code == 200, reply.text
        notes: list[str] = reply.json()["notes"]
        return notes

    def counts() -> bool:
        """Return whether trainings use the label that is served."""
        info = LabelHistory(with_login.site.studies).versions("ct_02", "final")[-1].info
        return "disputed" not in info

    save("theo", mask_of_theo)
    (note,) = [
        note_text
        for note_text in save("anna", np.roll(mask_of_theo, 40, 0), confirms=True)
        if "takes liver away" in note_text
    ]
    assert "the version of theo" in note
    assert not counts()
    click = {"foreground": [[60, 60, 5]], "label": "liver", "save_as": "liver", "confirms": True, "client_id": "theo"}
    form = {"data": {"params": json.dumps(click)}}
    with_login.ask("POST", "/infer/zero_shot?image=ct_02&output=json", with_login.tokens["anna"], **form)
    assert not counts()
    save("theo", np.roll(mask_of_theo, 40, 0))
    assert counts()
