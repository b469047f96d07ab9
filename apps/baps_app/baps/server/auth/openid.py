"""Client of an OpenID provider: verifies its tokens, and exchanges passwords and authorization codes for them.

The configuration of the provider and its keys are fetched when they are first needed, and again every few minutes. For
a token that is signed with an unknown key the keys are fetched at once, but at most every few seconds: otherwise forged
tokens could make this server flood the provider.
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
"""Seconds to connect, and between two parts of a response."""

_LEEWAY = 30
"""Seconds by which the clocks of the provider and of this server may differ."""

_REFRESH_SECONDS = 600.0
"""Time after which the configuration and the keys of the provider are fetched again."""

_RETRY_SECONDS = 10.0
"""Minimum time between two attempts to fetch the keys."""

_READ_SECONDS = 15.0
"""Time in which a response must be read."""

_MAX_RESPONSE_BYTES = 1 << 20
_SCOPE = "openid profile"


class OpenId:
    """An OpenID provider.

    Args:
        settings: Address of the provider, this server's client id and secret, and the roles of users.
    """

    def __init__(self, settings: OpenIdSettings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._configuration: tuple[float, dict[str, Any]] | None = None
        self._keys: tuple[float, Sequence[jwt.PyJWK]] | None = None
        self._failure: tuple[float, BapsError] | None = None

    def authenticate_token(self, token: str) -> Principal:
        """Return the user of an access token or an ID token.

        Args:
            token: JSON Web Token.

        Raises:
            HTTPException: 401 if the token is not valid, 403 if its user has no role on this server.
            BapsError: if the keys of the provider cannot be fetched.
        """
        return self._principal(self._decode(token, [self.settings.audience, self.settings.client_id]))

    def exchange_password(self, name: str, password: str) -> tuple[str, Principal]:
        """Exchange a user's password for a token of the provider.

        Args:
            name: Name of the user.
            password: Password of the user.

        Returns:
            The token, and its user.

        Raises:
            HTTPException: 400 if the provider accepts no passwords; 401 if it refuses this one, or returns no token
                that can be verified; 403 if the user has no role on this server.
            BapsError: if the provider cannot be reached.
        """
        if "password" not in self._configured().get("grant_types_supported", ["authorization_code", "implicit"]):
            raise HTTPException(
                400,
                "The hospital's login takes no passwords from programs. Ask the operator for a token of this server "
                "(baps users add), and use it as the password.",
            )
        grant = {"grant_type": "password", "username": name, "password": password, "scope": _SCOPE}
        tokens = self._exchange(grant, "User or password is wrong.")
        access_token, id_token = str(tokens.get("access_token") or ""), str(tokens.get("id_token") or "")
        if access_token.count(".") == 2:
            with suppress(HTTPException):  # Some access tokens can be verified by the provider only.
                return access_token, self.authenticate_token(access_token)
        return id_token, self.authenticate_token(id_token)

    def authorization_url(self, redirect_uri: str, state: str, nonce: str, verifier: str) -> str:
        """Return the address at which a browser signs in (authorization code flow with PKCE, RFC 7636).

        Args:
            redirect_uri: Address of this server to which the provider sends the browser back, with a code and the
                state.
            state: Random value that binds the response to the request.
            nonce: Random value that the ID token must contain.
            verifier: Code verifier of PKCE.

        Raises:
            BapsError: if the provider cannot be reached.
        """
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        query = {
            "response_type": "code",
            "client_id": self.settings.client_id,
            "redirect_uri": redirect_uri,
            "scope": _SCOPE,
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        address = self._endpoint("authorization_endpoint")
        return f"{address}{'&' if '?' in address else '?'}{urlencode(query)}"

    def exchange_code(self, code: str, redirect_uri: str, nonce: str, verifier: str) -> Principal:
        """Return the user of an authorization code.

        Args:
            code: Code that the provider sent with the browser.
            redirect_uri, nonce, verifier: The values that ``authorization_url`` got.

        Raises:
            HTTPException: 401 if the code or the token for it is not valid, 403 if the user has no role on this server.
            BapsError: if the provider cannot be reached.
        """
        grant = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
        }
        tokens = self._exchange(grant, "The OpenID provider refused the sign-in. Try again.")
        claims = self._decode(str(tokens.get("id_token") or ""), [self.settings.client_id])
        if claims.get("nonce") != nonce:
            raise _invalid_token()
        access_token = tokens.get("access_token")
        if self._role(claims) is None and isinstance(access_token, str) and access_token.count(".") == 2:
            # Some providers name the roles in the access token only.
            access_claims = self._decode(access_token, [self.settings.audience, self.settings.client_id])
            claims = {**access_claims, **claims} if access_claims["sub"] == claims["sub"] else claims
        return self._principal(claims)

    def _decode(self, token: str, audiences: Sequence[str]) -> dict[str, Any]:
        """Verify a token and return its claims.

        Raises:
            HTTPException: 401 if the token is not valid.
            BapsError: if the keys of the provider cannot be fetched.
        """
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.InvalidTokenError, ValueError):
            raise _invalid_token() from None
        algorithm = header.get("alg")
        if algorithm not in self.settings.algorithms or str(header.get("typ", "")).lower().startswith("logout"):
            raise _invalid_token()
        for refresh in (False, True):
            for key in self._signing_keys(refresh, header.get("kid"), str(algorithm)):
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
                    raise _invalid_token() from None
                return claims
        raise _invalid_token()

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        """Return the user that the claims of a token name.

        Raises:
            HTTPException: 403 if the user has no role on this server.
        """
        name, role = claims.get(self.settings.name_claim), self._role(claims)
        name = name if isinstance(name, str) and name else str(claims["sub"])
        if role is None:
            raise HTTPException(
                403, "You are signed in, but have no role on this server. Ask its operator for one (openid: roles)."
            )
        return Principal(name[:200], role, "openid")

    def _role(self, claims: Mapping[str, Any]) -> Role | None:
        """Return the highest role that the claims name, or None."""
        value: Any = claims.get(self.settings.roles_claim)
        if value is None:  # A path, such as realm_access.roles of Keycloak.
            value = claims
            for part in self.settings.roles_claim.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
        names = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        roles = {self.settings.roles[name] for name in names if isinstance(name, str) and name in self.settings.roles}
        return max(roles, key=list(Role).index, default=None)

    def _signing_keys(self, refresh: bool, key_id: object, algorithm: str) -> list[jwt.PyJWK]:
        """Return the provider's keys for an algorithm and a key id, or for the algorithm if there is no key id.

        Raises:
            BapsError: if the keys cannot be fetched and the known ones are too old.
        """
        with self._lock:
            age = time.monotonic() - self._keys[0] if self._keys else None
            failed_recently = self._failure is not None and time.monotonic() - self._failure[0] < _RETRY_SECONDS
            is_due = age is None or age > _REFRESH_SECONDS or (refresh and age > _RETRY_SECONDS)
            if is_due and not failed_recently:
                try:
                    self._keys = time.monotonic(), _parse_keys(self._fetch(self._endpoint("jwks_uri")))
                    age, self._failure = 0.0, None
                except BapsError as error:
                    self._failure = time.monotonic(), error
            if self._failure and (age is None or age > 6 * _REFRESH_SECONDS):
                raise self._failure[1]  # Until then, the known keys are used.
            keys = self._keys[1] if self._keys else []
        return [key for key in keys if key.algorithm_name == algorithm and (key_id is None or key.key_id == key_id)]

    def _endpoint(self, name: str) -> str:
        address = self._configured().get(name)
        if not isinstance(address, str) or not is_safe(address):
            raise BapsError(f"The OpenID provider names no {name} that begins with https. Correct its configuration.")
        return address

    def _configured(self) -> dict[str, Any]:
        """Return the configuration of the provider (OpenID Connect Discovery 1.0), fetched if it is not known."""
        known = self._configuration
        if known is None or time.monotonic() - known[0] > _REFRESH_SECONDS:
            configuration = self._fetch(f"{self.settings.issuer.rstrip('/')}/.well-known/openid-configuration")
            if configuration.get("issuer") != self.settings.issuer:
                raise BapsError(
                    "The OpenID provider names another issuer than the settings. Write it exactly as the provider "
                    "does, including the last slash."
                )
            self._configuration = known = time.monotonic(), configuration
        return known[1]

    def _exchange(self, grant: Mapping[str, str], refusal: str) -> dict[str, Any]:
        """Exchange a code or a password for tokens.

        Args:
            grant: Fields of the request.
            refusal: Message if the provider refuses them.

        Raises:
            HTTPException: 401 if the provider refuses the code or the password.
            BapsError: if the provider cannot be reached.
        """
        client_id, secret = self.settings.client_id, self.settings.client_secret
        methods = self._configured().get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        basic = bool(secret) and "client_secret_basic" in methods
        auth = (quote(client_id, safe=""), quote(secret, safe="")) if basic else None
        form = (
            dict(grant) if basic else {**grant, "client_id": client_id, **({"client_secret": secret} if secret else {})}
        )
        response = self._request("POST", self._endpoint("token_endpoint"), data=form, auth=auth)
        if response.status_code in (400, 401, 403):
            raise HTTPException(401, refusal, {"WWW-Authenticate": "Bearer"})
        return self._parse(response)

    def _fetch(self, address: str) -> dict[str, Any]:
        return self._parse(self._request("GET", address))

    def _request(self, method: str, address: str, **options: Any) -> requests.Response:
        ca = str(self.settings.ca) if self.settings.ca else True
        try:
            return requests.request(
                method, address, timeout=_TIMEOUT, verify=ca, allow_redirects=False, stream=True, **options
            )
        except requests.RequestException as error:
            raise BapsError(
                f"The OpenID provider does not answer ({type(error).__name__}). Try again later. The setting openid "
                "names the file with its address."
            ) from None

    @staticmethod
    def _parse(response: requests.Response) -> dict[str, Any]:
        """Read a response that holds a JSON object.

        Raises:
            BapsError: if it holds anything else, is too long, or comes too slowly.
        """
        try:
            with response:
                content = _read_content(response)
                parsed = requests.compat.json.loads(content) if response.status_code == 200 else None
        except (ValueError, OSError, HTTPError, requests.RequestException):
            parsed = None
        if not isinstance(parsed, dict):
            raise BapsError(
                f"The OpenID provider gave no usable answer (status {response.status_code}). Try again later."
            )
        return parsed


def _read_content(response: requests.Response) -> bytes:
    """Read a response within limits: a broken provider may send byte by byte without end.

    Raises:
        OSError: if it is too long or comes too slowly.
    """
    content, end = bytearray(), time.monotonic() + _READ_SECONDS
    while part := response.raw.read1(_MAX_RESPONSE_BYTES, decode_content=True):
        content += part
        if len(content) > _MAX_RESPONSE_BYTES or time.monotonic() > end:
            raise OSError
    return bytes(content)


def _parse_keys(key_set: Mapping[str, Any]) -> list[jwt.PyJWK]:
    """Return the keys for signatures of a JSON Web Key Set, except those of unknown types."""
    keys = []
    for data in key_set.get("keys", []):
        try:
            if data.get("use", "sig") == "sig":
                keys.append(jwt.PyJWK(data))
        except (jwt.PyJWTError, AttributeError):
            continue
    return keys


def _invalid_token() -> HTTPException:
    return HTTPException(401, "The token is not valid here. Sign in again.", {"WWW-Authenticate": "Bearer"})
