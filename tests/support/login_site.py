"""The login page and a protected page, without the rest of the server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from fastapi import FastAPI
from fastapi.testclient import TestClient

from baps.server.auth.authenticator import Authenticator
from baps.server.auth.guard import Guard, Rules
from baps.server.auth.openid import OpenId
from baps.server.error_handlers import refuse
from baps.server.middleware.root_path import RootPath
from baps.server.routes.login import Login
from baps.site.openid_settings import OpenIdSettings
from baps.site.roles import Role
from baps.site.users import Users
from tests.support.provider import Provider


class LoginSite:
    """The login routes in an application of their own.

    Args:
        folder: folder for the users file.
        provider: OpenID provider whose users may sign in too, or None.
        root: path below which it is served.
        origins: other origins whose pages may send requests.

    Attributes:
        tokens: tokens of the users ``anna`` and ``otto``.
        app: to ask, by ``browser``.
    """

    def __init__(
        self, folder: Path, provider: Provider | None = None, root: str = "", origins: Sequence[str] = ()
    ) -> None:
        users = Users(folder / "users.json")
        self.tokens = {name: users.add(name, Role.ANNOTATOR) for name in ("anna", "otto")}
        openid = None
        if provider:
            reply = {"issuer": provider.issuer, "client_id": "baps", "roles": {"radiologist": "annotator"}}
            openid = OpenId(OpenIdSettings.model_validate(reply))
        self.authenticator = Authenticator(users, openid)
        login, routes = Login(self.authenticator), FastAPI()
        routes.get("/login")(login.page)
        routes.post("/login")(login.sign_in)
        routes.get("/login/openid")(login.to_provider)
        routes.get("/login/openid/return")(login.from_provider)
        routes.get("/logout")(login.before_sign_out)
        routes.post("/logout")(login.sign_out)
        routes.post("/auth/token")(login.token)
        for path in ("/info/", "/ohif/", "/datastore/image"):
            routes.get(path)(lambda: "of patients")
        audit = SimpleNamespace(record=lambda *_: None, count=lambda *_: None)
        self.app = RootPath(Guard(routes, Rules(self.authenticator, audit, list(origins), 1 << 20, refuse)), root)  # type: ignore[arg-type]

    def browser(self, scheme: str = "http", address: str = "10.0.0.1") -> TestClient:
        """A browser that has not signed in."""
        return TestClient(self.app, f"{scheme}://hospital", follow_redirects=False, client=(address, 50000))

    def sign_in(self, browser: TestClient, name: str, root: str = "") -> None:
        """Sign in with the token of a user."""
        form = {"username": name, "password": self.tokens[name]}
        assert browser.post(f"{root}/login", data=form).status_code == 303
