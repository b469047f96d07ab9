"""Attacks on sign-in, through the browser, and on answers that reveal details of this machine."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import requests

from stress.attack.attacks import Site, Target, attack
from stress.attack.odd_pacs import SCRIPT, STUDY

_LINK = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Accept": "text/html"}
_FRAME = {**_LINK, "Sec-Fetch-Dest": "iframe"}
_PICTURE = {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image", "Accept": "image/*"}
_WEBSOCKET = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
              "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip
_FOREIGN = ("cross-site", "same-site")
"""Values of Sec-Fetch-Site for a page of another site, and of another port or subdomain of this site."""


# Attacks through the browser.


@attack(Site.FOLDER, silently_ignored=True)
def framed_by_a_foreign_page(target: Target) -> bool:
    """Show the server's pages in frames of a page of another origin, which could observe them."""
    requested = [{**_FRAME, "Sec-Fetch-Site": site} for site in _FOREIGN] + [{"Accept": "text/html"}]
    replies = [
        target.request("GET", path, headers=headers) for path in ("/", "/ohif/", "/docs") for headers in requested
    ]
    return any(reply.ok and not _refuses_frames(reply) for reply in replies)


@attack(Site.FOLDER)
def picture_on_a_foreign_page(target: Target) -> bool:
    """Load an image of the studies into a page of another origin, whose events tell whether the image exists."""
    query = {"image": target.image}
    requested = [{**_PICTURE, "Sec-Fetch-Site": site} for site in _FOREIGN]
    requested += [{**_FRAME, "Sec-Fetch-Site": site, "Sec-Fetch-Dest": "object"} for site in _FOREIGN]
    return any(target.request("GET", "/datastore/image", query, headers=headers).ok for headers in requested)


@attack(Site.FOLDER, silently_ignored=True)
def kept_or_run_by_a_browser(target: Target) -> bool:
    """Have a browser cache, frame, or sniff the content type of an answer without protective headers."""
    image = {"image": target.image}
    requested: list[tuple[str, str, Mapping[str, str] | None, Mapping[str, str]]] = [
        ("GET", "/", None, {}),
        ("GET", "/docs", None, {}),
        ("GET", "/info/", None, {}),
        ("GET", "/openapi.json", None, {}),
        ("GET", "/datastore/", {"output": "all"}, {}),
        ("GET", "/datastore/image", image, {}),
        ("HEAD", "/datastore/image", image, {}),
        ("GET", "/datastore/image", {"image": "nothing"}, {}),
        ("GET", "/datastore/label", {"label": target.other_image, "tag": "final"}, {}),
        ("GET", "/nothing", None, {}),
        ("GET", "/logout", None, {}),
        ("GET", "/ohif", None, {}),
        ("OPTIONS", "/info/", None, {"Origin": "http://evil.example", "Access-Control-Request-Method": "PUT"}),
        ("POST", "/infer/nothing", None, {}),
        ("DELETE", "/datastore/image", {"id": "nothing"}, {}),
        ("GET", "/info/", None, {"Host": "evil.example"}),
        ("GET", "/info/", None, _WEBSOCKET),
    ]
    replies = [target.request(method, path, query, headers=headers) for method, path, query, headers in requested]
    replies.append(target.request("POST", "/train/nothing", data=bytes((1 << 20) + 1)))
    return any(not _has_protective_headers(reply) for reply in replies)


@attack(Site.FOLDER, silently_ignored=True)
def scripts_and_fonts_from_elsewhere(target: Target) -> bool:
    """Have the server's pages load files from other hosts, which learn who opens them and could run scripts in them."""
    pages = ("/", "/docs", "/redoc", "/login", "/ohif/", "/static/ohif/index.html", "/ohif/silent-refresh.html")
    replies = [target.request("GET", path) for path in pages]
    loads = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*(?:src|href)=["']?(?:https?:)?//(?!127\.0\.0\.1)""")
    return any(reply.ok and loads.search(reply.text) for reply in replies)


@attack(Site.FOLDER)
def raw_files_of_ohif(target: Target) -> bool:
    """Fetch MONAI Label's own files of OHIF, which sign in at Google and load scripts from there."""
    names = ("static/ohif/index.html", "static/ohif/google.js", "static/ohif/sw.js", "ohif/google.js", "ohif/sw.js")
    replies = [target.request("GET", f"/{name}") for name in names]
    return any(reply.ok and "google" in reply.text.lower() for reply in replies)


# Attacks on sessions and logins of other users.


@attack(Site.USERS)
def sessions_of_others_ended(target: Target) -> bool:
    """Sign in more often than sessions are kept, so that the server drops the sessions of others."""
    with _signed_in_browser(target, "other") as other:
        form = {"username": "annotator", "password": target.users["annotator"]}

        def sign_in(_: int) -> None:
            for _ in range(525):
                browser.post(f"{target.address}/login", data=form, allow_redirects=False, timeout=60)

        with requests.Session() as browser, ThreadPoolExecutor(8) as pool:
            list(pool.map(sign_in, range(8)))
        return not other.get(f"{target.address}/info/", timeout=60).ok


@attack(Site.USERS)
def logins_under_way_ended(target: Target) -> bool:
    """Begin more logins at the OpenID provider than the server keeps, so that it drops a login in progress."""
    with requests.Session() as browser:
        sent = browser.get(f"{target.address}/login/openid", allow_redirects=False, timeout=60)
        state = parse_qs(urlsplit(sent.headers["Location"]).query)["state"][0]
        with requests.Session() as nobody:
            for _ in range(1100):
                nobody.get(f"{target.address}/login/openid", allow_redirects=False, timeout=60)
        back = browser.get(f"{target.address}/login/openid/return?state={state}&code=x", timeout=60)
        return "did not begin here" in back.text


@attack(Site.USERS)
def session_ended_by_a_link(target: Target) -> bool:
    """End a session by a link to /logout, an image of it, and a form of another page, without Sec-Fetch headers."""
    with _signed_in_browser(target, "other") as other:
        address = f"{target.address}/logout"
        other.get(address, timeout=60)
        other.head(address, timeout=60)
        for headers in ({}, {"Origin": "null"}, {"Origin": "http://evil.example"}, {"X-HTTP-Method-Override": "POST"}):
            other.post(address, headers=headers, timeout=60)
            other.get(f"{address}?_method=POST", headers=headers, timeout=60)
        return not other.get(f"{target.address}/info/", timeout=60).ok


@attack(Site.USERS)
def work_under_another_name(target: Target) -> bool:
    """Plant one's own session cookie in another user's browser, so that the other user works under one's name."""
    with _signed_in_browser(target, "annotator") as own_browser, _signed_in_browser(target, "other") as other_browser:
        planted = f"baps={own_browser.cookies['baps']}; baps={other_browser.cookies['baps']}"
        reply = target.request("GET", "/auth/token/valid", token="", headers={"Cookie": planted})
        return reply.ok and reply.json()["username"] == "annotator"


# Answers that reveal details of this machine or of the PACS's network.


@attack(Site.USERS)
def paths_of_the_machine(target: Target) -> bool:
    """Learn paths on the server's machine, as an annotator."""
    trainer, annotator = target.users["trainer"], target.users["annotator"]
    training = target.request("POST", "/train/baps", json={"label": "liver", "max_images": 1}, token=trainer)
    name = {"files": ("x.nii.gz", target.secret.read_bytes())}
    session_reply = target.request("PUT", "/session/", files=name, token=annotator)
    session = session_reply.json().get("session_id", "")
    end = time.monotonic() + 8  # The training logs its folders in the first seconds.
    while (
        training.ok
        and time.monotonic() < end
        and "studies" not in target.request("GET", "/train/", token=annotator).text
    ):
        time.sleep(0.5)
    paths = ("/train/", "/train/?all=true", "/train/?check_if_running=true", "/info/", f"/session/{session}",
             "/progress/", f"/datastore/image/info?image={target.image}", "/openapi.json", "/docs", "/auth/",
             f"/datastore/label/info?label={target.other_image}&tag=final", "/datastore/image?image=nothing",
             *(f"/datastore/?output={kind}" for kind in ("all", "train", "stats")))  # fmt: skip
    for path in paths:
        target.request("GET", path, token=annotator)
    for strategy in ("random", "first"):
        target.request("POST", f"/activelearning/{strategy}", json={}, token=annotator)
    target.request("DELETE", f"/session/{session}", token=annotator)
    end = time.monotonic() + 20
    while training.ok and not target.request("DELETE", "/train/", token=trainer).ok and time.monotonic() < end:
        time.sleep(0.25)
    return any(str(target.folder) in reply.text or str(Path.home()) in reply.text for reply in target.replies)


# This attack comes last among those with users: if it succeeds, nobody can sign in for a while.


@attack(Site.USERS)
def right_tokens_locked_out(target: Target) -> bool:
    """Send wrong passwords and tokens from an address shared with others, until valid ones are refused."""
    form = {"username": "annotator", "password": "wrong"}
    for path in ("/login", "/auth/token"):
        for _ in range(12):
            target.request("POST", path, data=form, token="")
    for number in range(15):
        target.request("GET", "/info/", token=f"wrong {number}")
    valid = {"username": "other", "password": target.users["other"]}
    replies = [target.inspect("POST", path, data=valid, token="") for path in ("/login", "/auth/token")]
    replies.append(target.inspect("GET", "/info/", token=target.users["other"]))
    return any(reply.status_code == 429 for reply in replies)


@attack(Site.PACS, silently_ignored=True)
def address_of_the_pacs(target: Target) -> bool:
    """Learn the address of the PACS in the hospital's network."""
    names = ("metadata", "series", "frames/1", "instances", "rendered", "thumbnail", "bulk/7fe00010")
    replies = [
        target.request("GET", f"/proxy/dicom/{kind}studies/{STUDY}/{name}") for kind in ("", "wado/") for name in names
    ]
    sent = {"Content-Type": "multipart/related; type=application/dicom; boundary=b"}
    replies.append(
        target.request("POST", f"/proxy/dicom/studies/{STUDY}", data=b"--b\r\n\r\n\r\n--b--\r\n", headers=sent)
    )
    own = urlsplit(target.address).netloc
    headers_and_bodies = [f"{reply.headers} {reply.text}" for reply in replies]
    return any(host != own for text in headers_and_bodies for host in re.findall(r"127\.0\.0\.1:\d+", text))


@attack(Site.PACS, silently_ignored=True)
def page_of_the_pacs(target: Target) -> bool:
    """Have a script in an answer of the PACS run in the server's origin, where a user is signed in."""
    paths = [
        f"/proxy/dicom/{kind}studies/{STUDY}/{name}"
        for kind in ("", "wado/")
        for name in ("rendered", "thumbnail", "x")
    ]
    replies = [target.request("GET", path, headers=_LINK) for path in paths]
    return any(SCRIPT in reply.content and _may_run_as_page(reply) for reply in replies)


@attack(Site.PACS)
def where_the_pacs_leads(target: Target) -> bool:
    """Have the PACS redirect the server to an address that only the server can reach."""
    return "DicomAet" in target.request("GET", f"/proxy/dicom/studies/{STUDY}/instances").text


@contextmanager
def _signed_in_browser(target: Target, name: str) -> Iterator[requests.Session]:
    """Yield a browser session in which a user is signed in."""
    with requests.Session() as browser:
        form = {"username": name, "password": target.users[name]}
        browser.post(f"{target.address}/login", data=form, allow_redirects=False, timeout=60).raise_for_status()
        yield browser
        browser.post(f"{target.address}/logout", headers={"Origin": target.address}, timeout=60)


def _refuses_frames(reply: requests.Response) -> bool:
    policy = reply.headers.get("Content-Security-Policy", "")
    return bool(re.search(r"frame-ancestors '(none|self)'", policy)) or reply.headers.get("X-Frame-Options") == "DENY"


def _has_protective_headers(reply: requests.Response) -> bool:
    headers = reply.headers
    return (
        _refuses_frames(reply)
        and headers.get("X-Content-Type-Options") == "nosniff"
        and headers.get("Referrer-Policy") in ("same-origin", "no-referrer")
        and "no-store" in headers.get("Cache-Control", "")
        and "'unsafe-inline'" not in re.sub(r"style-src[^;]*", "", headers["Content-Security-Policy"])
        and re.match(r"default-src '(none|self)'", headers["Content-Security-Policy"]) is not None
    )


def _may_run_as_page(reply: requests.Response) -> bool:
    kind = reply.headers.get("Content-Type", "").lower()
    return "html" in kind or "xml" in kind or (not kind and reply.headers.get("X-Content-Type-Options") != "nosniff")
