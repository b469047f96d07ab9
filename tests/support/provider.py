"""An OpenID provider for tests, which control its keys and tokens."""

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
    """An OpenID provider.

    Attributes:
        issuer: address of the provider.
        keys: keys by id; each new token is signed with the last one.
        discovery_changes: changes to its discovery document.
        requested_paths: paths that were requested.
        password: password of every user, or "" if it accepts no passwords.
        codes: codes that it issued, with nonce and code challenge; each can be used once.
        passwords_tried: passwords that were tried.
    """

    issuer: str
    keys: dict[str, PrivateKeyTypes] = field(default_factory=dict)
    discovery_changes: dict[str, Any] = field(default_factory=dict)
    requested_paths: list[str] = field(default_factory=list)
    password: str = ""
    codes: dict[str, tuple[str, str]] = field(default_factory=dict)
    passwords_tried: list[str] = field(default_factory=list)

    def code(self, address: str) -> str:
        """Sign a browser in; return the code and the state for the query of the redirect."""
        query = parse_qs(urlsplit(address).query)
        code = f"code-{len(self.requested_paths)}-{query['state'][0][:8]}"
        self.codes[code] = query["nonce"][0], query["code_challenge"][0]
        return urlencode({"code": code, "state": query["state"][0]})

    def rotate(self, kid: str, algorithm: str = "RS256") -> None:
        """Replace all keys by a new one."""
        self.keys = {kid: new_key(algorithm)}

    def token(self, key: Any = None, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """Build a valid token with changed claims; a claim of None is omitted."""
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
    """Run a provider on this machine, with one key."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            provider.requested_paths.append(self.path)
            if self.path == "/jwks":
                self._answer({"keys": provider.jwks()})
                return
            base = provider.issuer
            self._answer({"issuer": base, "jwks_uri": f"{base}/jwks", "token_endpoint": f"{base}/token",
                          "authorization_endpoint": f"{base}/authorize", **provider.discovery_changes})  # fmt: skip

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            if "code" in form:
                nonce, challenge = provider.codes.pop(form["code"][0], ("", ""))
                hashed = hashlib.sha256(form["code_verifier"][0].encode()).digest()
                valid = bool(nonce) and challenge == base64.urlsafe_b64encode(hashed).rstrip(b"=").decode()
                token = {"id_token": provider.token(nonce=nonce)}
            else:
                provider.passwords_tried += form.get("password", [])
                valid = bool(provider.password) and form.get("password") == [provider.password]
                token = {"access_token": provider.token(preferred_username=form["username"][0])}
            self._answer(token if valid else {"error": "invalid_grant"}, 200 if valid else 400)

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
