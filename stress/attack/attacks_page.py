"""Attacks on the site's page: its buttons, the names that it shows, its redirects, and the files below /static."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests

from baps.adapters.adapter import identity_adapter
from baps.blackbox.weights import sha256
from baps.registry.store import AdapterStore
from stress.attack.attacks import EVIL, Site, Target, attack

_HTML = {"Accept": "text/html,application/xhtml+xml"}
_BUTTONS = ("publish", "rollback", "withdraw")
_ORGAN = "spleen"
_MARKUP = "<img src=x onerror=alert(1)>"
_PAGES = ("/", "/web/train", "/web/training-status", "/web/adapters", "/web/adapters/organ", "/web/adapters/version",
          "/web/adapters/pictures", "/web/adapters/report", "/web/adapters/confirm")  # fmt: skip


@attack(Site.USERS)
def buttons_pressed_by_a_foreign_page(target: Target) -> bool:
    """Have a page of another origin send the forms of the page, from the browser of a trainer who has signed in."""
    forged: tuple[dict[str, str], ...] = (
        {}, {"Origin": EVIL}, {"Origin": "null"}, {"Origin": EVIL, "Host": "evil.example"},
        {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
    )  # fmt: skip
    with _trained(target) as store, _signed_in(target, "trainer") as browser:
        for headers in forged:
            for path in (*(f"/web/adapters/{button}" for button in _BUTTONS), "/web/train", "/web/train/stop"):
                _press(target, browser, path, headers)
                target.replies.append(browser.get(f"{target.address}{path}?_method=POST", headers=headers, timeout=60))
        return store.published(_ORGAN) != "v0001" or _is_training(target)


@attack(Site.USERS)
def buttons_without_the_role(target: Target) -> bool:
    """Press the buttons of trainers as an annotator, with a cookie and with a token."""
    own = {"Origin": target.address}
    with _trained(target) as store, _signed_in(target, "annotator") as browser:
        for path in (*(f"/web/adapters/{button}" for button in _BUTTONS), "/web/train", "/web/train/stop"):
            _press(target, browser, path, own)
            _press(target, browser, f"{path}/", own)
            target.request("POST", path, data=_form(), token=target.users["annotator"])
            target.request("POST", path, data={**_form(), "role": "trainer"}, token=target.users["annotator"])
        return store.published(_ORGAN) != "v0001" or _is_training(target)


@attack(Site.USERS)
def script_in_a_name(target: Target) -> bool:
    """Have a name that a user can set run as a script in the browser of an admin: of an image, a segment or a user."""
    image = (target.images / f"{target.image}.nii.gz").read_bytes()
    label = (target.images / "labels" / "final" / f"{target.other_image}.nii.gz").read_bytes()
    token = target.users["annotator"]
    target.request("PUT", "/datastore/image", {"image": _MARKUP}, files={"file": ("x.nii.gz", image)}, token=token)
    params = '{"label_info": [{"name": "<svg onload=alert(1)>", "idx": 1}], "client_id": "<b onclick=alert(1)>"}'
    sent = {"files": {"label": ("x.nii.gz", label)}, "data": {"params": params}}
    target.request("PUT", "/datastore/label", {"image": _MARKUP, "tag": "final"}, token=token, **sent)
    query = dict.fromkeys(("model", "organ", "version", "action", "patient", "next"), _MARKUP)
    known = {"model": "baps", "organ": _ORGAN, "version": "v0001", "action": "withdraw"}
    with _trained(target):
        replies = [
            target.request("GET", path, parameters, headers=_HTML)
            for path in _PAGES
            for parameters in ({}, query, {**known, "organ": _MARKUP}, known)
        ]
        form = {"model": "baps", "label": _MARKUP, "max_images": '"><script>alert(1)</script>', "seed": _MARKUP}
        replies.append(target.request("POST", "/web/train", data=form, headers=_HTML))
    for file in target.images.rglob("*onerror*"):
        if file.is_file():
            file.unlink()
    live = re.compile(r"<(img src=x|svg onload|b onclick|script>alert)")
    return any(live.search(reply.text) for reply in replies)


@attack(Site.USERS)
def redirected_elsewhere(target: Target) -> bool:
    """Have the page redirect a trainer to another host."""
    places = ("//evil.example", "https://evil.example/", "/\\evil.example", "\r\nLocation: https://evil.example/")
    own, replies = {"Origin": target.address}, []
    with _trained(target) as store, _signed_in(target, "trainer") as browser:
        for place in places:
            for button in _BUTTONS:
                form = {"model": "baps", "organ": place, "version": "v0001", "shown": "", "next": place}
                address = f"{target.address}/web/adapters/{button}?next={place.strip()}"
                replies.append(browser.post(address, form, headers=own, allow_redirects=False, timeout=60))
            form = {**_form(), "shown": store.published(_ORGAN) or "", "next": place, "redirect": place}
            address = f"{target.address}/web/adapters/publish"
            replies.append(browser.post(address, form, headers=own, allow_redirects=False, timeout=60))
    target.replies.extend(replies)
    host = urlsplit(target.address).netloc
    addresses = [urljoin(target.address, reply.headers.get("Location", "/").replace("\\", "/")) for reply in replies]
    return any(urlsplit(address).netloc != host for address in addresses)


@attack(Site.USERS)
def files_below_static(target: Target) -> bool:
    """Read other files of this machine below /static, and reports and pictures of other folders."""
    names = ("../access_policy.py", "%2e%2e/access_policy.py", "..%2faccess_policy.py", "....//access_policy.py",
             "web/../../access_policy.py", str(target.secret), f"/{target.secret}", "site.css%00.py")  # fmt: skip
    replies = [target.request("GET", f"/static/{name}") for name in names]
    outside = str(Path("../../..") / target.outside.name / "secret")
    for path in ("/web/adapters/report", "/web/adapters/picture", "/web/adapters/version"):
        for organ, version in ((outside, "v0001"), (_ORGAN, outside), (_ORGAN, f"v0001/../../{outside}")):
            replies.append(target.request("GET", path, {"model": "baps", "organ": organ, "version": version}))
    return any(reply.ok for reply in replies)


@attack(Site.USERS)
def page_without_a_login(target: Target) -> bool:
    """Read pages, live progress and pictures without signing in."""
    paths = (*_PAGES, "/web/train/events", "/web/adapters/picture", "/static/site.js")
    return any(target.request("GET", path, token="").ok for path in paths)


@contextmanager
def _trained(target: Target) -> Iterator[AdapterStore]:
    """Yield the store, in which an adapter of an organ serves; it is removed afterwards."""
    store = AdapterStore(target.folder / "adapters")
    about = {"name": "bundled", "weights_sha256": sha256(target.weights)}
    record = {"adapter": identity_adapter().to_dict(), "black_box": about, "verdict": None}
    version = store.add(_ORGAN, identity_adapter(), record)
    store.publish(_ORGAN, version)
    try:
        yield store
    finally:
        for file in sorted(store.file(_ORGAN, version).parents[1].rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()


@contextmanager
def _signed_in(target: Target, name: str) -> Iterator[requests.Session]:
    with requests.Session() as browser:
        form = {"username": name, "password": target.users[name]}
        browser.post(f"{target.address}/login", data=form, allow_redirects=False, timeout=60).raise_for_status()
        yield browser


def _form() -> dict[str, str]:
    return {"model": "baps", "organ": _ORGAN, "version": "v0001", "shown": "v0001", "label": "all", "max_images": "1"}


def _press(target: Target, browser: requests.Session, path: str, headers: dict[str, str]) -> None:
    address = f"{target.address}{path}"
    target.replies.append(browser.post(address, data=_form(), headers=headers, allow_redirects=False, timeout=60))


def _is_training(target: Target) -> bool:
    return target.inspect("GET", "/train/?check_if_running=true", token=target.users["admin"]).ok
