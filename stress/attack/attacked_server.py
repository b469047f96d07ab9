"""Servers to attack: unmodified MONAI Label's and ours, each on a folder of studies or a PACS."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from baps.blackbox.loading import BUNDLED_WEIGHTS
from baps.demo.server import free_port, running
from baps.site.roles import Role
from baps.site.server_command import serving_command
from baps.site.users import Users
from benchmarks.paths import ROOT
from stress.attack.attacks import Site, Target, write_volume
from stress.attack.small_pacs import running_pacs
from tests.support.provider import running_provider

_SAMPLES = ROOT / "sample-data" / "ct"
_IMAGES = ("ct_01", "ct_02")


@contextmanager
def attacked_server(folder: Path, site: Site, stock: bool) -> Iterator[Target]:
    """Start a server with all its files below a folder.

    The subfolder ``outside`` holds files that the server must not read or change. Our server on a PACS has users, as
    every server that other machines can reach. On a folder of studies it is started as by ``make serve``: without
    users, for its own machine, except for ``Site.USERS``.

    Args:
        folder: an empty folder.
        site: what the server serves.
        stock: start MONAI Label's own server with a small app made of its own parts, not ours.

    Yields:
        The server as the target of attacks.
    """
    studies, outside, app, cache = (folder / name for name in ("studies", "outside", "app", "cache"))
    for path in (studies, outside, app, cache):
        path.mkdir()
    for image in _IMAGES:
        shutil.copy(_SAMPLES / "images" / f"{image}.nii.gz", studies)
    if site is not Site.PACS:
        (studies / "labels" / "final").mkdir(parents=True)
        shutil.copy(_SAMPLES / "labels" / f"{_IMAGES[1]}.nii.gz", studies / "labels" / "final")
    _write_outside_files(outside)
    for file in (BUNDLED_WEIGHTS, BUNDLED_WEIGHTS.with_suffix(".json")):
        shutil.copy(file, app)
    settings, tokens, weights = {}, {"admin": "", "annotator": ""}, app / BUNDLED_WEIGHTS.name
    models, click = ("zero_shot", "whole_organ"), {"foreground": [[64, 64, 12]]}
    if stock:
        shutil.copy(Path(__file__).with_name("stock_app") / "main.py", app)
        weights, models, click = app / "bright.ts", ("liver", "spleen"), {}
    else:
        settings = {"labels": "spleen=2,liver=1", "adapters": str(folder / "adapters"), "weights": str(weights)}
        if site is not Site.FOLDER:
            users = Users(folder / "users.json")
            tokens = {role.value: users.add(role.value, role) for role in Role}
            tokens["other"] = users.add("other", Role.ANNOTATOR)
            settings["users"] = str(users.file)
    with ExitStack() as stack:
        if site is Site.USERS and not stock:
            settings["openid"] = str(_openid(folder, stack.enter_context(running_provider()).issuer))
        source = f"{stack.enter_context(running_pacs())}/dicom-web" if site is Site.PACS else str(studies)
        port = free_port()
        command, environment = serving_command(source, "127.0.0.1", port, settings, stock, app if stock else None)
        environment |= {
            "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(cache),
            "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
        }
        address = f"http://127.0.0.1:{port}"
        page = f"{address}/{'info' if stock else 'auth'}/"
        process = stack.enter_context(running(command, environment, page, folder / "server.log"))
        yield Target(
            address=address,
            images=cache if site is Site.PACS else studies,
            outside=outside,
            weights=weights,
            image=_IMAGES[0],
            other_image=_IMAGES[1],
            model=models[0],
            other_model=models[1],
            click=click,
            token=tokens["admin"],
            annotator=tokens["annotator"],
            users={name: token for name, token in tokens.items() if token},
            folder=folder,
            process_id=process.pid,
        )


def _openid(folder: Path, issuer: str) -> Path:
    """Write the settings file of an OpenID provider, whose users may sign in too."""
    file = folder / "openid.json"
    file.write_text(json.dumps({"issuer": issuer, "client_id": "baps", "roles": {"radiologist": "annotator"}}))
    file.chmod(0o600)
    return file


def _write_outside_files(outside: Path) -> None:
    """Write another patient's image and its DICOM folder, as in the cache of another server."""
    write_volume(outside / "secret.nii.gz")
    (outside / "secret").mkdir()
    (outside / "secret" / "1.dcm").write_bytes(bytes(128) + b"DICM")
