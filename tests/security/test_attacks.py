"""Every attack of the first round succeeds on MONAI Label as it comes; every attack fails here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from stress.attack.all_attacks import ATTACKS
from stress.attack.attacked import attacked
from stress.attack.attacks import Attack, Site, Target, tried
from tests.support.marks import starts

pytestmark = pytest.mark.slow

Start = Callable[[Site, bool], Target]


@pytest.fixture(scope="module")
@starts("server")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Gives the server of a site, stock or ours; one runs at a time, for as long as it is asked for."""
    with ExitStack() as running:
        started: dict[tuple[Site, bool], Target] = {}

        def given(site: Site, stock: bool) -> Target:
            if (site, stock) not in started:
                running.close()
                started.clear()
                folder = tmp_path_factory.mktemp("attacked")
                started[site, stock] = running.enter_context(attacked(folder, site, stock))
            return started[site, stock]

        yield given


def _contents(target: Target) -> dict[Path, str]:
    """Hashes of all files that an attack could be after; not of what the server notes of labels when it counts them."""
    files = [file for folder in (target.images, target.outside, target.weights.parent) for file in folder.rglob("*")]
    kept = [file for file in files if file.is_file() and file.name != ".label-checks.json"]
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in kept}


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
def test_it_succeeds_as_it_comes_and_fails_here(start: Start, site: Site, stock: bool, attack: Attack) -> None:
    target = start(site, stock)
    before = _contents(target)
    result = tried(attack, target)
    said = [(reply.request.method, reply.url, reply.status_code, reply.text[:200]) for reply in result.replies]
    if stock:
        assert result.succeeded == (not attack.not_on_stock), said
        return
    assert not result.succeeded, said
    if site is Site.USERS:  # Much of what these send is allowed, once; each says by its effect whether it succeeded.
        assert all(reply.status_code < 500 or reply.status_code in (503, 507) for reply in result.replies), said
        return
    assert _contents(target) == before
    for reply in result.replies:
        if attack.passed_over and reply.ok:
            continue
        assert 400 <= reply.status_code < 500, said
        sentence = reply.json()["detail"]
        assert isinstance(sentence, str), said
        assert sentence.endswith(".") or (reply.status_code, sentence) == (404, "Not Found"), said
