"""An OpenID provider: its tokens, checked, and its ways to sign in.

What the provider says of itself, and its keys, are fetched when they are first needed, and again now and then. A token
that is signed with a key not yet seen has the keys fetched at once, but not oftener than every few seconds, so that
invented tokens cannot make this server flood the provider.
"""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote, urlencode

import jwt
import requests
from fastapi import HTTPException
from urllib3.exceptions import HTTPError

from baps.errors import BapsError
from baps.server.request_context import Principal
from baps.site.openid_settings import OpenIdSettings, is_safe
from baps.site.roles import Role

_TIMEOUT = (5, 15)
_LEEWAY = 30
"""Seconds that two clocks may differ."""

_FRESH = 600.0
_PAUSE = 10.0
_READING = 15.0
"""Seconds in which an answer must be read."""

_MOST_BYTES = 1 << 20
_SCOPE = "openid profile"


class OpenId:
    """The provider that settings name.

    Args:
        settings: who it is, and who we are to it.
    """

    def __init__(self, settings: OpenIdSettings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._metadata: tuple[float, dict[str, Any]] | None = None
        self._keys: tuple[float, Sequence[jwt.PyJWK]] | None = None
        self._failed: tuple[float, BapsError] | None = None

    def principal(self, token: str) -> Principal:
        """Whom an access or id token names.

        Raises:
            HTTPException: 401 if it is not valid, 403 if nobody here has the roles that it names.
            BapsError: if the keys of the provider cannot be fetched.
        """
        return self._known(self._claims(token, [self.settings.audience, self.settings.client_id]))

    def with_password(self, name: str, password: str) -> tuple[str, Principal]:
        """A token of the provider for a user's password, and whom it names.

        Raises:
            HTTPException: 400 if the provider takes no passwords, 401 if it refuses this one or gives no token that can
                be checked, 403 as for ``principal``.
            BapsError: if the provider cannot be reached.
        """
        if "password" not in self._about().get("grant_types_supported", ["authorization_code", "implicit"]):
            raise HTTPException(
                400,
                "The hospital's login takes no passwords from programs. Ask the operator for a token of this server "
                "(baps users add), and give it as the password.",
            )
        given = {"grant_type": "password", "username": name, "password": password, "scope": _SCOPE}
        answer = self._exchange(given, "User or password is wrong.")
        access, identity = str(answer.get("access_token") or ""), str(answer.get("id_token") or "")
        if access.count(".") == 2:
            with suppress(HTTPException):  # Some are meant for the provider alone.
                return access, self.principal(access)
        return identity, self.principal(identity)

    def address_to_sign_in(self, back: str, state: str, nonce: str, verifier: str) -> str:
        """Where a browser goes to sign in; it comes back with a code and the state.

        Raises:
            BapsError: if the provider cannot be reached.
        """
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        query = {
            "response_type": "code",
            "client_id": self.settings.client_id,
            "redirect_uri": back,
            "scope": _SCOPE,
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        address = self._endpoint("authorization_endpoint")
        return f"{address}{'&' if '?' in address else '?'}{urlencode(query)}"

    def with_code(self, code: str, back: str, nonce: str, verifier: str) -> Principal:
        """Whom a code stands for, which a browser came back with.

        Raises:
            HTTPException: 401 if it or the token for it is not valid, 403 as for ``principal``.
            BapsError: if the provider cannot be reached.
        """
        given = {"grant_type": "authorization_code", "code": code, "redirect_uri": back, "code_verifier": verifier}
        answer = self._exchange(given, "The OpenID provider refused the sign-in. Try again.")
        claims = self._claims(str(answer.get("id_token") or ""), [self.settings.client_id])
        if claims.get("nonce") != nonce:
            raise _invalid()
        access = answer.get("access_token")
        if self._role(claims) is None and isinstance(access, str) and access.count(".") == 2:
            # Some put the roles into the access token alone.
            more = self._claims(access, [self.settings.audience, self.settings.client_id])
            claims = {**more, **claims} if more["sub"] == claims["sub"] else claims
        return self._known(claims)

    def _claims(self, token: str, audiences: Sequence[str]) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.InvalidTokenError, ValueError):
            raise _invalid() from None
        algorithm = header.get("alg")
        if algorithm not in self.settings.algorithms or str(header.get("typ", "")).lower().startswith("logout"):
            raise _invalid()
        for fresh in (False, True):
            for key in self._signing_keys(fresh, header.get("kid"), str(algorithm)):
                try:
                    claims: dict[str, Any] = jwt.decode(
                        token,
                        key.key,
                        algorithms=[str(algorithm)],
                        audience=[audience for audience in audiences if audience],
                        issuer=self.settings.issuer,
                        leeway=_LEEWAY,
                        options={"require": ["exp", "iat", "iss", "aud", "sub"]},
                    )
                except jwt.InvalidSignatureError:
                    continue
                except jwt.ExpiredSignatureError:
                    raise HTTPException(
                        401, "The sign-in has expired. Sign in again.", {"WWW-Authenticate": "Bearer"}
                    ) from None
                except jwt.InvalidTokenError:
                    raise _invalid() from None
                return claims
        raise _invalid()

    def _known(self, claims: Mapping[str, Any]) -> Principal:
        name, role = claims.get(self.settings.name_claim), self._role(claims)
        name = name if isinstance(name, str) and name else str(claims["sub"])
        if role is None:
            raise HTTPException(
                403, "You are signed in, but have no role on this server. Ask its operator for one (openid: roles)."
            )
        return Principal(name[:200], role, "openid")

    def _role(self, claims: Mapping[str, Any]) -> Role | None:
        """The highest of the roles that are named."""
        value: Any = claims.get(self.settings.roles_claim)
        if value is None:
            value = claims
            for part in self.settings.roles_claim.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
        names = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        found = {self.settings.roles[name] for name in names if isinstance(name, str) and name in self.settings.roles}
        return max(found, key=list(Role).index, default=None)

    def _signing_keys(self, fresh: bool, kid: object, algorithm: str) -> list[jwt.PyJWK]:
        with self._lock:
            age = time.monotonic() - self._keys[0] if self._keys else None
            failed = self._failed is not None and time.monotonic() - self._failed[0] < _PAUSE
            if (age is None or age > _FRESH or (fresh and age > _PAUSE)) and not failed:
                try:
                    self._keys = time.monotonic(), _parsed(self._fetch(self._endpoint("jwks_uri")))
                    age, self._failed = 0.0, None
                except BapsError as error:
                    self._failed = time.monotonic(), error
            if self._failed and (age is None or age > 6 * _FRESH):
                raise self._failed[1]  # Until then the known ones do.
            keys = self._keys[1] if self._keys else []
        return [key for key in keys if key.algorithm_name == algorithm and (kid is None or key.key_id == kid)]

    def _endpoint(self, name: str) -> str:
        address = self._about().get(name)
        if not isinstance(address, str) or not is_safe(address):
            raise BapsError(f"The OpenID provider names no {name} that begins with https. Correct its configuration.")
        return address

    def _about(self) -> dict[str, Any]:
        known = self._metadata
        if known is None or time.monotonic() - known[0] > _FRESH:
            about = self._fetch(f"{self.settings.issuer.rstrip('/')}/.well-known/openid-configuration")
            if about.get("issuer") != self.settings.issuer:
                raise BapsError(
                    "The OpenID provider names another issuer than the settings do. Write it as the provider does, to "
                    "the last slash."
                )
            self._metadata = known = time.monotonic(), about
        return known[1]

    def _exchange(self, given: Mapping[str, str], refusal: str) -> dict[str, Any]:
        """What the provider gives for a code or a password."""
        ours, secret = self.settings.client_id, self.settings.client_secret
        ways = self._about().get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        basic = bool(secret) and "client_secret_basic" in ways
        account = (quote(ours, safe=""), quote(secret, safe="")) if basic else None
        form = dict(given) if basic else {**given, "client_id": ours, **({"client_secret": secret} if secret else {})}
        reply = self._ask("POST", self._endpoint("token_endpoint"), data=form, auth=account)
        if reply.status_code in (400, 401, 403):
            raise HTTPException(401, refusal, {"WWW-Authenticate": "Bearer"})
        return self._object(reply)

    def _fetch(self, address: str) -> dict[str, Any]:
        return self._object(self._ask("GET", address))

    def _ask(self, method: str, address: str, **sent: Any) -> requests.Response:
        ca = str(self.settings.ca) if self.settings.ca else True
        try:
            return requests.request(
                method, address, timeout=_TIMEOUT, verify=ca, allow_redirects=False, stream=True, **sent
            )
        except requests.RequestException as error:
            raise BapsError(
                f"The OpenID provider does not answer ({type(error).__name__}). Try again later. Its address stands "
                "in the settings (openid)."
            ) from None

    @staticmethod
    def _object(reply: requests.Response) -> dict[str, Any]:
        try:
            with reply:
                content = _content(reply)
                found = requests.compat.json.loads(content) if reply.status_code == 200 else None
        except (ValueError, OSError, HTTPError, requests.RequestException):
            found = None
        if not isinstance(found, dict):
            raise BapsError(f"The OpenID provider gave no usable answer (status {reply.status_code}). Try again later.")
        return found


def _content(reply: requests.Response) -> bytes:
    """Read an answer, which a provider may send byte by byte, for ever.

    Raises:
        OSError: if it is too long or comes too slowly.
    """
    content, end = bytearray(), time.monotonic() + _READING
    while part := reply.raw.read1(_MOST_BYTES, decode_content=True):
        content += part
        if len(content) > _MOST_BYTES or time.monotonic() > end:
            raise OSError
    return bytes(content)


def _parsed(keys: Mapping[str, Any]) -> list[jwt.PyJWK]:
    """Keys for signatures; those of kinds that are not known are left out."""
    found = []
    for data in keys.get("keys", []):
        try:
            if data.get("use", "sig") == "sig":
                found.append(jwt.PyJWK(data))
        except (jwt.PyJWTError, AttributeError):
            continue
    return found


def _invalid() -> HTTPException:
    return HTTPException(401, "The token is not valid here. Sign in again.", {"WWW-Authenticate": "Bearer"})
