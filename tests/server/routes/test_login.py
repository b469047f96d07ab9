"""The way to an OpenID provider and back, sessions and who plants them, and what pages of other origins may ask."""

from __future__ import annotations

import time
from collections.abc import Iterator
from http.cookies import SimpleCookie
from itertools import product
from pathlib import Path
from urllib.parse import parse_qs, urljoin, urlsplit

import pytest
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketDenialResponse

from tests.support.login_site import LoginSite
from tests.support.provider import Provider, running_provider


@pytest.fixture
def provider() -> Iterator[Provider]:
    with running_provider() as running:
        running.discovery_changes["grant_types_supported"] = ["authorization_code", "password"]
        yield running


def _begin(browser: TestClient, root: str = "", target: str = "/info/") -> str:
    reply = browser.get(f"{root}/login/openid", params={"next": target})
    assert reply.status_code == 303
    return reply.headers["Location"]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("root", ["", "/baps"])
def test_sign_in_with_a_provider(tmp_path: Path, provider: Provider, scheme: str, root: str) -> None:
    site = LoginSite(tmp_path, provider, root)
    browser = site.browser(scheme)
    address = _begin(browser, root, f"{root}/ohif/")
    reply = browser.get(f"{root}/login/openid/return?{provider.code(address)}")
    assert (reply.status_code, f'content="0;url={root}/ohif/"' in reply.text) == (200, True)
    assert browser.get(f"{root}/info/").status_code == 200
    assert {cookie.name.removeprefix("__Host-").removeprefix("__Secure-") for cookie in browser.cookies.jar} == {"baps"}


def test_the_state_of_a_sign_in_is_an_encrypted_cookie(tmp_path: Path, provider: Provider) -> None:
    site = LoginSite(tmp_path, provider)
    browser = site.browser("https")
    address = _begin(browser)
    query = parse_qs(urlsplit(address).query)
    (cookie,) = browser.cookies.jar
    assert cookie.name == "__Host-baps-openid"
    assert not any(query[secret][0] in cookie.value for secret in ("state", "nonce", "code_challenge"))  # type: ignore[operator]
    for _ in range(1100):  # By nobody.
        _begin(site.browser("https"))
    assert browser.get(f"/login/openid/return?{provider.code(address)}").status_code == 200


def test_a_sign_in_can_be_finished_once(tmp_path: Path, provider: Provider) -> None:
    site = LoginSite(tmp_path, provider)
    browser = site.browser()
    back = f"/login/openid/return?{provider.code(_begin(browser))}"
    kept = dict(browser.cookies)
    assert browser.get(back).status_code == 200
    assert browser.get(back).status_code == 400
    other = site.browser()
    other.cookies.update(kept)  # Whoever could keep the cookie finds the code used.
    assert other.get(back).status_code == 401


def test_other_states_are_refused(tmp_path: Path, provider: Provider) -> None:
    site = LoginSite(tmp_path, provider)
    browser, attacker = site.browser(), site.browser()
    address, theirs = _begin(browser), _begin(attacker)
    for query in ("", "state=x&code=y", provider.code(theirs), "state=%ff", "state=" + "é" * 40):
        assert browser.get(f"/login/openid/return?{query}").status_code == 400
    (cookie,) = browser.cookies.jar
    for value in ("", "x", cookie.value[:-4] + "AAA=", "é"):  # type: ignore[index]
        sent = {"Cookie": f"baps-openid={value}".encode()}
        assert site.browser().get("/login/openid/return?state=x&code=y", headers=sent).status_code == 400
    # Another server of the host has planted the way of its own beside.
    planted = {"Cookie": f"baps-openid={next(iter(attacker.cookies.jar)).value}; baps-openid={cookie.value}"}
    browser.cookies.clear()
    assert browser.get(f"/login/openid/return?{provider.code(address)}", headers=planted).status_code == 200


def test_a_sign_in_expires_after_ten_minutes(
    tmp_path: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = LoginSite(tmp_path, provider)
    browser = site.browser()
    back = f"/login/openid/return?{provider.code(_begin(browser))}"
    later = time.time() + 601
    monkeypatch.setattr("cryptography.fernet.time.time", lambda: later)
    assert browser.get(back).status_code == 400


def test_the_cookie_of_a_sign_in_is_small_enough(tmp_path: Path, provider: Provider) -> None:
    site = LoginSite(tmp_path, provider)
    for target in ("/ohif/?a=" + "x" * 5000, "/ohif/?a=" + "é" * 1400, "/ohif/?a=" + "é" * 700):
        reply = site.browser().get("/login/openid", params={"next": target})
        assert len(reply.headers["Set-Cookie"]) < 4096


# Sessions.


def test_signing_out_needs_a_post(tmp_path: Path) -> None:
    site = LoginSite(tmp_path)
    browser = site.browser()
    site.sign_in(browser, "anna")
    reply = browser.get("/logout")
    assert (reply.status_code, reply.headers["Location"], "Set-Cookie" in reply.headers) == (303, "/login", False)
    assert "Sign out" in browser.get("/login").text
    for headers in ({}, {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        browser.post("/logout", headers=headers)
        assert browser.get("/info/").status_code == 200
    browser.post("/logout", headers={"Origin": "http://hospital"})
    assert browser.get("/info/").status_code == 401


def test_cookies_of_two_users_are_refused(tmp_path: Path) -> None:
    """Another server of the host, or a page of it, has planted one."""
    site = LoginSite(tmp_path)
    values = {}
    for name in ("anna", "otto"):
        browser = site.browser()
        site.sign_in(browser, name)
        (values[name],) = (cookie.value for cookie in browser.cookies.jar)

    def status(*cookies: str | None) -> int:
        sent = "; ".join(f"baps={value}" for value in cookies)
        return site.browser().get("/info/", headers={"Cookie": sent}).status_code

    assert status(values["otto"], values["anna"]) == status(values["anna"], values["otto"]) == 401
    assert status("junk", values["anna"]) == status(values["anna"], "junk", values["anna"]) == 200
    assert status(*("junk",) * 9, values["anna"]) == 200
    assert status(*map(str, range(9)), values["anna"]) == 401  # More than are looked at.


# Pages of other origins.

LINK = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Accept": "text/html"}
FOREIGN = [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}]


@pytest.mark.parametrize("site_", FOREIGN)
@pytest.mark.parametrize("path", ["/ohif/", "/login", "/", "/docs"])
def test_links_of_other_pages_open_pages(tmp_path: Path, path: str, site_: dict[str, str]) -> None:
    assert LoginSite(tmp_path).browser().get(path, headers={**LINK, **site_}).status_code in (200, 303)


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/datastore/image", {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}),
        ("GET", "/datastore/image", LINK),
        ("GET", "/login/openid", LINK),
        ("HEAD", "/info/", {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "empty"}),
        ("GET", "/ohif/", {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}),
        ("GET", "/ohif/", {**LINK, "Sec-Fetch-Dest": "iframe"}),
        ("GET", "/login", {**LINK, "Sec-Fetch-Dest": "object"}),
        ("GET", "/login", {**LINK, "Sec-Fetch-Dest": "embed"}),
        ("POST", "/login", LINK),
        ("POST", "/logout", LINK),
        ("OPTIONS", "/info/", {}),
    ],
)
def test_requests_of_other_pages_are_refused(tmp_path: Path, method: str, path: str, headers: dict[str, str]) -> None:
    """Neither with a token nor without one."""
    site = LoginSite(tmp_path)
    for known, foreign in product(({"Authorization": f"Bearer {site.tokens['anna']}"}, {}), FOREIGN):
        reply = site.browser().request(method, path, headers={**headers, **foreign, **known})
        assert reply.status_code == 403
        assert "patients" not in reply.text


def test_allowed_origins_and_programs(tmp_path: Path) -> None:
    site = LoginSite(tmp_path, origins=["https://viewer.hospital"])
    known = {"Authorization": f"Bearer {site.tokens['anna']}"}
    named = {"Origin": "https://viewer.hospital", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
    assert site.browser().get("/info/", headers={**known, **named}).status_code == 200
    assert site.browser().get("/info/", headers=known).status_code == 200  # 3D Slicer and scripts.
    framed = {**named, "Sec-Fetch-Dest": "iframe"}
    assert site.browser().get("/ohif/", headers={**known, **framed}).status_code == 403
    other = {**named, "Origin": "https://viewer.hospital.evil.example"}
    assert site.browser().get("/info/", headers={**known, **other}).status_code == 403


@pytest.mark.parametrize("root", ["", "/baps"])
@pytest.mark.parametrize(
    "place",
    ["//evil.example", "///evil.example", "/\\evil.example", "/%5cevil.example", "https:evil.example", "\t//e.example",
     "/ohif/../..//evil.example", "http://hospital.evil.example/", "/logout", "/login?next=//evil.example", "/x//e"],
)  # fmt: skip
def test_the_login_redirects_to_this_server_only(tmp_path: Path, place: str, root: str) -> None:
    site = LoginSite(tmp_path, root=root)
    for target in (place, root + place):
        form = {"username": "anna", "password": site.tokens["anna"], "next": target}
        location = site.browser().post(f"{root}/login", data=form).headers["Location"]
        assert urlsplit(urljoin("http://hospital/", location.replace("\\", "/"))).netloc == "hospital"
        assert location.startswith(f"{root}/")
        assert "logout" not in location


def test_a_websocket_is_refused(tmp_path: Path) -> None:
    site = LoginSite(tmp_path)
    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        site.browser().websocket_connect("/info/", headers={"Authorization": f"Bearer {site.tokens['anna']}"}),
    ):
        pass
    assert refused.value.status_code == 403


# Who fails too often.


@pytest.mark.parametrize("path", ["/login", "/auth/token"])
def test_valid_tokens_are_never_throttled(tmp_path: Path, path: str) -> None:
    site = LoginSite(tmp_path)
    browser = site.browser()
    seen = [browser.post(path, data={"username": "anna", "password": f"{n}"}).status_code for n in range(20)]
    assert seen == [401] * 10 + [429] * 10
    for name in ("anna", "otto"):
        reply = browser.post(path, data={"username": name, "password": site.tokens[name]})
        assert reply.status_code in (200, 303)
    assert browser.post(path, data={"username": "otto", "password": "wrong"}).status_code == 401
    for _ in range(20):
        browser.get("/info/", headers={"Authorization": "Bearer wrong"})
    assert browser.get("/info/", headers={"Authorization": f"Bearer {site.tokens['anna']}"}).status_code == 200


def test_passwords_of_a_provider_are_throttled(tmp_path: Path, provider: Provider) -> None:
    provider.password = "open sesame"  # noqa: S105
    site = LoginSite(tmp_path, provider)

    def sign_in(name: str, password: str, address: str = "10.0.0.1") -> int:
        form = {"username": name, "password": password}
        return site.browser(address=address).post("/auth/token", data=form).status_code

    assert sign_in("olga", "open sesame") == 200
    spellings = ("rita", "Rita", " rita", "RITA", "\uff52ita")
    assert [sign_in(spellings[n % 5], str(n)) for n in range(12)] == [401] * 10 + [429] * 2
    assert len(provider.passwords_tried) == 11
    assert sign_in("rita", "open sesame") == 429
    assert sign_in("rita", "open sesame", "10.0.0.2") == 200  # Who guesses elsewhere does not lock her out here.
    assert sign_in("olaf", "open sesame") == 200
    for number in range(100):
        sign_in(f"user {number}", "guess")
    assert sign_in("paul", "open sesame") == 429  # The address tries one name after the other.
    assert sign_in("olga", "open sesame") == 200  # But whoever signed in from there before may.
    assert sign_in("anna", site.tokens["anna"]) == 200


def test_an_unreachable_provider_is_not_a_failed_attempt(tmp_path: Path, provider: Provider) -> None:
    site = LoginSite(tmp_path, provider)
    provider.discovery_changes["token_endpoint"] = "http://127.0.0.1:9/token"  # noqa: S105
    form = {"username": "rita", "password": "x"}
    assert {site.browser().post("/login", data=form).status_code for _ in range(15)} == {503}


def test_session_cookie(tmp_path: Path) -> None:
    site = LoginSite(tmp_path)
    reply = site.browser("https").post("/login", data={"username": "anna", "password": site.tokens["anna"]})
    (morsel,) = SimpleCookie(reply.headers["Set-Cookie"]).values()
    assert (morsel.key, morsel["secure"], morsel["samesite"]) == ("__Host-baps", True, "strict")
