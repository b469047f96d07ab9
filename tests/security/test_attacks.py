"""Attacks succeed on an unmodified MONAI Label server, with known exceptions, and fail on ours."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from stress.attack.all_attacks import ATTACKS
from stress.attack.attacked_server import attacked_server
from stress.attack.attacks import Attack, Site, Target, try_attack
from tests.support.marks import starts

pytestmark = pytest.mark.slow

GetTarget = Callable[[Site, bool], Target]


@pytest.fixture(scope="module")
@starts("server")
def get_target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GetTarget]:
    """Return a function that starts a server, stock or ours, and keeps it running until another one is requested."""
    with ExitStack() as running:
        started: dict[tuple[Site, bool], Target] = {}

        def get(site: Site, stock: bool) -> Target:
            if (site, stock) not in started:
                running.close()
                started.clear()
                folder = tmp_path_factory.mktemp("attacked")
                started[site, stock] = running.enter_context(attacked_server(folder, site, stock))
            return started[site, stock]

        yield get


def _hashes(target: Target) -> dict[Path, str]:
    """Hash all files that an attack could change, except the server's own record of label checks."""
    files = [file for folder in (target.images, target.outside, target.weights.parent) for file in folder.rglob("*")]
    relevant = [file for file in files if file.is_file() and file.name != ".label-checks.json"]
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in relevant}


@pytest.mark.parametrize(
    ("site", "stock", "attack"),
    [
        pytest.param(site, stock, attack, id=f"{'stock' if stock else 'ours'}-{attack.name}")
        for site in Site
        for stock in (True, False)
        if not (stock and site is Site.USERS)
        for attack in ATTACKS
        if attack.site is site
    ],
)
def test_attack_succeeds_on_stock_and_fails_on_ours(
    get_target: GetTarget, site: Site, stock: bool, attack: Attack
) -> None:
    target = get_target(site, stock)
    before = _hashes(target)
    result = try_attack(attack, target)
    replies = [(reply.request.method, reply.url, reply.status_code, reply.text[:200]) for reply in result.replies]
    if stock:
        assert result.succeeded == (not attack.not_on_stock), replies
        return
    assert not result.succeeded, replies
    if site is Site.USERS:  # Many of these requests are allowed once; the effect decides whether the attack succeeded.
        assert all(reply.status_code < 500 or reply.status_code in (503, 507) for reply in result.replies), replies
        return
    assert _hashes(target) == before
    for reply in result.replies:
        if attack.silently_ignored and reply.ok:
            continue
        assert 400 <= reply.status_code < 500, replies
        sentence = reply.json()["detail"]
        assert isinstance(sentence, str), replies
        assert sentence.endswith(".") or (reply.status_code, sentence) == (404, "Not Found"), replies
