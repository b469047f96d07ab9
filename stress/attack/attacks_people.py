"""Attacks on the pages about labels and people: roles, foreign pages, markup, paths, and what pages reveal."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from stress.attack.attacks import EVIL, Site, Target, attack

_HTML = {"Accept": "text/html,application/xhtml+xml"}
_MARKUP = "<img src=x onerror=alert(1)>"
_PAGES = ("/web/labels", "/web/labels/rows", "/web/labels/image", "/web/labels/differences", "/web/labels/picture",
          "/web/labels/confirm", "/web/labels/readers", "/web/labels/next")  # fmt: skip
_ADMIN_PAGES = ("/web/people", "/web/people/confirm", "/web/people/audit", "/web/people/usage")
_FORMS = {
    "/web/people/add": {"name": "mallory", "role": "admin", "days": ""},
    "/web/people/renew": {"name": "admin", "shown": ""},
    "/web/people/role": {"name": "annotator", "role": "admin", "shown": "", "told": "self last-admin"},
    "/web/people/remove": {"name": "trainer", "shown": "", "told": "self last-admin"},
    "/web/people/end-session": {"session": ""},
}


@attack(Site.USERS)
def people_managed_by_a_foreign_page(target: Target) -> bool:
    """Have a page of another origin send the forms of the page about people, from the browser of an admin."""
    before = _users(target)
    forged: tuple[dict[str, str], ...] = (
        {}, {"Origin": EVIL}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
        {"Origin": EVIL, "Content-Type": "text/plain"},
    )  # fmt: skip
    with _signed_in(target, "admin") as browser:
        session = _own_session(target, browser)
        for headers in forged:
            for path, form in _FORMS.items():
                _press(target, browser, path, {**form, "shown": before[1].get(form.get("name", ""), "")}, headers)
            _press(target, browser, "/web/people/end-session", {"session": session}, headers)
        return _users(target) != before or not browser.get(f"{target.address}/web/people", timeout=60).ok


@attack(Site.USERS)
def people_managed_without_the_role(target: Target) -> bool:
    """Manage users, end sessions and read the audit file as an annotator and as a trainer."""
    before, own = _users(target), {"Origin": target.address}
    is_shown = False
    for name in ("annotator", "trainer"):
        with _signed_in(target, name) as browser:
            for path, form in _FORMS.items():
                _press(target, browser, path, {**form, "shown": before[1].get(form.get("name", ""), "")}, own)
                target.request("POST", path, data=form, token=target.users[name])
            for path in (*_ADMIN_PAGES, "/web/people/", "/web//people", "/web/people/audit/"):
                reply = browser.get(f"{target.address}{path}", headers=_HTML, timeout=60)
                target.replies.append(reply)
                is_shown = is_shown or reply.ok
    return is_shown or _users(target) != before


@attack(Site.USERS)
def labels_changed_without_the_role(target: Target) -> bool:
    """Restore and confirm labels as an annotator, and from a page of another origin."""
    image, versions = target.other_image, _two_versions(target)
    form = {"image": image, "tag": "final", "version": versions[0], "shown": versions[-1], "organ": "spleen"}
    for path in ("/web/labels/restore", "/web/labels/confirm"):
        with _signed_in(target, "annotator") as browser:
            _press(target, browser, path, form, {"Origin": target.address})
            target.request("POST", path, data=form, token=target.users["annotator"])
        with _signed_in(target, "trainer") as browser:
            for headers in ({}, {"Origin": EVIL}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
                _press(target, browser, path, form, headers)
    return _versions(target) != versions


@attack(Site.USERS)
def paths_in_the_names_of_labels(target: Target) -> bool:
    """Read and restore files outside the studies by the name of an image, a tag or a version."""
    outside = f"../../../{target.outside.name}/secret"
    names = (outside, f"..%2f..%2f{target.outside.name}%2fsecret", str(target.secret), "..", ".lock", "a\x00b",
             "....//....//etc/passwd", "..\\..\\secret")  # fmt: skip
    before = _hashes(target)
    replies = []
    newest = _two_versions(target)[-1]
    for name in names:
        known = {"image": target.other_image, "tag": "final", "version": newest, "against": ""}
        for query in ({**known, "image": name}, {**known, "tag": name}, {**known, "version": name}):
            for path in ("/web/labels/image", "/web/labels/differences", "/web/labels/picture", "/web/labels/confirm"):
                reply = target.request("GET", path, {**query, "action": "restore", "index": "0"}, headers=_HTML)
                replies.append(reply)
            form = {**query, "shown": newest, "organ": name}
            for path in ("/web/labels/restore", "/web/labels/confirm"):
                target.request("POST", path, data=form, headers={"Origin": target.address})
    # A message repeats the name that was sent.
    texts = [reply.text.replace(str(target.secret), "") for reply in replies]
    is_leaked = any(str(place) in text for place in (target.outside, target.folder) for text in texts)
    return is_leaked or _versions(target)[-1] != newest or _hashes(target) != before


@attack(Site.USERS)
def script_in_the_names_of_labels_and_people(target: Target) -> bool:
    """Have the name of an image, of a segment, of an annotator or of a filter run as a script in an admin's browser."""
    image = (target.images / f"{target.image}.nii.gz").read_bytes()
    label = (target.images / "labels" / "final" / f"{target.other_image}.nii.gz").read_bytes()
    token = target.users["annotator"]
    target.request("PUT", "/datastore/image", {"image": _MARKUP}, files={"file": ("x.nii.gz", image)}, token=token)
    params = {"label_info": [{"name": "<svg onload=alert(1)>", "idx": 1}], "client_id": "<b onclick=alert(1)>"}
    sent = {"files": {"label": ("x.nii.gz", label)}, "data": {"params": json.dumps(params)}}
    for tag in ("final", "draft"):
        target.request("PUT", "/datastore/label", {"image": _MARKUP, "tag": tag}, token=token, **sent)
    keys = ("q", "state", "sort", "page", "image", "tag", "version", "against", "action", "organ", "user", "day",
            "image_name", "start", "show")  # fmt: skip
    replies = []
    for path in (*_PAGES, *_ADMIN_PAGES):
        for query in ({}, dict.fromkeys(keys, _MARKUP), {"image": _MARKUP}, {"q": '"><script>alert(1)</script>'},
                      {"user": "' onfocus=alert(1) autofocus x='"}):  # fmt: skip
            replies.append(target.request("GET", path, query, headers=_HTML))
    own = {**_HTML, "Origin": target.address}
    for path, form in _FORMS.items():
        replies.append(target.request("POST", path, data=dict.fromkeys(form, _MARKUP), headers=own))
    for file in target.images.rglob("*onerror*"):
        if file.is_file():
            file.unlink()
    live = re.compile(r"<(img src=x|svg onload|b onclick|script>alert)")
    is_page = [reply.headers.get("Content-Type", "").startswith("text/html") for reply in replies]
    assert sum(is_page) > len(replies) / 2
    return any(live.search(reply.text) for reply, shown in zip(replies, is_page, strict=True) if shown)


@attack(Site.USERS)
def secrets_on_the_page_about_people(target: Target) -> bool:
    """Read tokens, their hashes or the cookies of others on the pages of an admin, or in the log."""
    with _signed_in(target, "annotator") as other, _signed_in(target, "admin") as browser:
        cookies = [cookie.value or "" for cookie in other.cookies]
        pages = []
        for path in (*_ADMIN_PAGES, "/web/people/confirm?action=renew&user=annotator"):
            pages.append(browser.get(f"{target.address}{path}", headers=_HTML, timeout=60).text)
    secrets = [*cookies, *target.users.values(), *(_sha256(token) for token in target.users.values())]
    log = (target.folder / "server.log").read_text()
    return any(secret and secret in text for secret in secrets for text in (*pages, log))


@attack(Site.USERS)
def server_without_an_admin(target: Target) -> bool:
    """As an admin, remove the last admin, or take the role, without having been told."""
    before = _users(target)
    form = {"name": "admin", "role": "annotator", "shown": before[1]["admin"]}
    with _signed_in(target, "admin") as browser:
        for told in ("", "self", "last-admin", "Self last-admins", "self,last-admin"):
            for path in ("/web/people/remove", "/web/people/role"):
                _press(target, browser, path, {**form, "told": told}, {"Origin": target.address})
    return _users(target) != before


@attack(Site.USERS)
def labels_and_people_without_a_login(target: Target) -> bool:
    """Read the pages about labels and people without signing in."""
    return any(target.request("GET", path, token="").ok for path in (*_PAGES, *_ADMIN_PAGES))


@contextmanager
def _signed_in(target: Target, name: str) -> Iterator[requests.Session]:
    with requests.Session() as browser:
        form = {"username": name, "password": target.users[name]}
        browser.post(f"{target.address}/login", data=form, allow_redirects=False, timeout=60).raise_for_status()
        yield browser


def _press(target: Target, browser: requests.Session, path: str, form: dict[str, str], headers: dict[str, str]) -> None:
    address = f"{target.address}{path}"
    target.replies.append(browser.post(address, data=form, headers=headers, allow_redirects=False, timeout=60))


def _users(target: Target) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Return the users with their roles, and the state of each, as an admin sees them."""
    text = target.inspect("GET", "/web/people", headers=_HTML).text
    table = text.partition("<tbody>")[2].partition("</tbody>")[0]
    roles = re.findall(r'<th scope="row">([\w.]+).*?<td>(\w+)</td>', table, re.DOTALL)
    states = {}
    for name, _ in roles:
        page = target.inspect("GET", "/web/people/confirm", {"action": "renew", "user": name}, headers=_HTML).text
        states[name] = re.findall(r'name="shown" value="(\w+)"', page)[0]
    return roles, states


def _own_session(target: Target, browser: requests.Session) -> str:
    text = browser.get(f"{target.address}/web/people", headers=_HTML, timeout=60).text
    row = next(part for part in text.split("<tr>") if "this browser" in part)
    return re.findall(r'name="session" value="(\w+)"', row)[0]


def _two_versions(target: Target) -> list[str]:
    """Return the versions of a label, after making two of them."""
    if len(_versions(target)) < 2:
        label = (target.images / "labels" / "final" / f"{target.other_image}.nii.gz").read_bytes()
        sent = {"files": {"label": ("x.nii.gz", label)}, "data": {"params": "{}"}}
        for _ in range(2):
            target.inspect("PUT", "/datastore/label", {"image": target.other_image, "tag": "final"}, **sent)
    return _versions(target)


def _versions(target: Target) -> list[str]:
    folder = target.images / "labels-history" / "final" / target.other_image
    return sorted(place.name for place in folder.iterdir() if place.is_dir()) if folder.is_dir() else []


def _hashes(target: Target) -> dict[Path, str]:
    files = [file for file in target.outside.rglob("*") if file.is_file()]
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
