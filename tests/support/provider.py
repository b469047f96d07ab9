"""An OpenID provider whose keys and tokens a test makes by hand."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from jwt.algorithms import ECAlgorithm, RSAAlgorithm


@dataclass
class Provider:
    """What it says and which keys it has.

    Attributes:
        issuer: its address.
        keys: by their ids; each new token is signed with the last.
        about: what its discovery document says beside the usual.
        asked: the paths that were fetched.
        password: of every user, where it takes passwords.
        codes: that it gave, with the nonce and the code challenge of each; it takes each once.
        tried: the passwords that were tried.
    """

    issuer: str
    keys: dict[str, PrivateKeyTypes] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    password: str = ""
    codes: dict[str, tuple[str, str]] = field(default_factory=dict)
    tried: list[str] = field(default_factory=list)

    def code(self, address: str) -> str:
        """What it gives a browser that it was sent to: a code and the state, for the query of the way back."""
        query = parse_qs(urlsplit(address).query)
        code = f"code-{len(self.asked)}-{query['state'][0][:8]}"
        self.codes[code] = query["nonce"][0], query["code_challenge"][0]
        return urlencode({"code": code, "state": query["state"][0]})

    def rotate(self, kid: str, algorithm: str = "RS256") -> None:
        """Have one new key, and forget the others."""
        self.keys = {kid: new_key(algorithm)}

    def token(self, key: Any = None, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token that is valid but for what is given; a claim of None is left out."""
        kid, own = next(reversed(self.keys.items()))
        now = int(time.time())
        usual = {"iss": self.issuer, "aud": "baps", "sub": "17", "iat": now, "nbf": now, "exp": now + 300}
        message = {**usual, "preferred_username": "rita", "roles": ["radiologist"], **claims}
        algorithm = "ES256" if isinstance(own, ec.EllipticCurvePrivateKey) else "RS256"
        return jwt.encode(
            {name: value for name, value in message.items() if value is not None},
            key or own,  # type: ignore[arg-type]
            algorithm=(headers or {}).get("alg", algorithm),
            headers={name: value for name, value in {"kid": kid, **(headers or {})}.items() if value is not None},
        )

    def jwks(self) -> list[dict[str, Any]]:
        return [{**_public(key), "kid": kid, "use": "sig"} for kid, key in self.keys.items()]


def new_key(algorithm: str = "RS256") -> PrivateKeyTypes:
    if algorithm == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _public(key: PrivateKeyTypes) -> dict[str, Any]:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    assert isinstance(key, rsa.RSAPrivateKey)
    return RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)


@contextmanager
def running_provider() -> Iterator[Provider]:
    """A provider on this machine, with one key."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            provider.asked.append(self.path)
            if self.path == "/jwks":
                self._answer({"keys": provider.jwks()})
                return
            base = provider.issuer
            self._answer({"issuer": base, "jwks_uri": f"{base}/jwks", "token_endpoint": f"{base}/token",
                          "authorization_endpoint": f"{base}/authorize", **provider.about})  # fmt: skip

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            if "code" in form:
                nonce, challenge = provider.codes.pop(form["code"][0], ("", ""))
                hashed = hashlib.sha256(form["code_verifier"][0].encode()).digest()
                good = bool(nonce) and challenge == base64.urlsafe_b64encode(hashed).rstrip(b"=").decode()
                token = {"id_token": provider.token(nonce=nonce)}
            else:
                provider.tried += form.get("password", [])
                good = bool(provider.password) and form.get("password") == [provider.password]
                token = {"access_token": provider.token(preferred_username=form["username"][0])}
            self._answer(token if good else {"error": "invalid_grant"}, 200 if good else 400)

        def _answer(self, content: object, status: int = 200) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    provider = Provider(f"http://127.0.0.1:{server.server_port}")
    provider.rotate("first")
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()
