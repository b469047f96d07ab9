"""Valid and invalid tokens of an OpenID provider."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import requests
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi import HTTPException

from baps.errors import BapsError
from baps.server.auth import openid as module
from baps.server.auth.authenticator import Authenticator
from baps.server.auth.openid import OpenId
from baps.site.openid_settings import OpenIdSettings
from baps.site.roles import Role
from baps.site.users import Users
from tests.support.provider import Provider, new_key, running_provider


@pytest.fixture
def provider() -> Iterator[Provider]:
    with running_provider() as running:
        yield running


def _openid(provider: Provider, **others: Any) -> OpenId:
    reply = {"issuer": provider.issuer, "client_id": "baps", "roles": {"radiologist": "annotator", "ml": "trainer"}}
    return OpenId(OpenIdSettings.model_validate({**reply, **others}))


def _refused(openid: OpenId, token: str, status: int = 401) -> str:
    with pytest.raises(HTTPException) as caught:
        openid.authenticate_token(token)
    assert caught.value.status_code == status
    return str(caught.value.detail)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_valid_token_gives_name_and_role(provider: Provider, algorithm: str) -> None:
    provider.rotate("a", algorithm)
    principal = _openid(provider).authenticate_token(provider.token())
    assert (principal.name, principal.role, principal.by) == ("rita", Role.ANNOTATOR, "openid")


def test_provider_user_is_distinct_from_user_of_the_same_name(provider: Provider, tmp_path: Path) -> None:
    users = Users(tmp_path / "users.json")
    users.add("rita", Role.TRAINER)
    authenticator = Authenticator(users, _openid(provider))
    principal = authenticator.authenticate_token(provider.token(), "127.0.0.1")
    assert (principal.name, principal.role, principal.by) == ("rita (openid)", Role.ANNOTATOR, "openid")
    named_so = authenticator.authenticate_token(provider.token(preferred_username="rita (openid)"), "127.0.0.1")
    assert named_so.name == "rita (openid) (openid)"
    assert authenticator.authenticate_token(provider.token(preferred_username="anna"), "127.0.0.1").name == "anna"


NOW = int(time.time())


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://elsewhere.example"},
        {"iss": None},
        {"aud": "another"},
        {"aud": ["another", "third"]},
        {"aud": None},
        {"exp": NOW - 3600, "iat": NOW - 7200},
        {"exp": None},
        {"nbf": NOW + 3600},
        {"iat": NOW + 3600},
        {"iat": None},
        {"sub": None},
    ],
)
def test_a_token_with_a_wrong_claim_is_refused(provider: Provider, claims: dict[str, object]) -> None:
    openid = _openid(provider)
    assert "gain" in _refused(openid, provider.token(**claims))
    assert openid.authenticate_token(provider.token()).name == "rita"


def test_a_token_with_the_signature_of_another_key_is_refused(provider: Provider) -> None:
    openid = _openid(provider)
    _refused(openid, provider.token(key=new_key()))
    _refused(openid, provider.token(key=new_key(), headers={"kid": None}))
    head, body, signature = provider.token().split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    forged = _encoded({**claims, "roles": ["ml"]})
    _refused(openid, f"{head}.{forged}.{signature}")
    _refused(openid, f"{head}.{body}.")
    assert openid.authenticate_token(f"{head}.{body}.{signature}").role is Role.ANNOTATOR


def _encoded(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE"])
def test_a_token_without_a_signature_is_refused(provider: Provider, algorithm: str) -> None:
    _, body, _ = provider.token().split(".")
    for kid in ({"kid": "first"}, {}):
        _refused(_openid(provider), f"{_encoded({'alg': algorithm, 'typ': 'JWT', **kid})}.{body}.")


def test_public_key_as_hmac_secret_is_refused(provider: Provider) -> None:
    """HS256 with the public key as its secret is the classic confusion of algorithms."""
    public = provider.keys["first"].public_key()  # type: ignore[union-attr]
    secrets = [public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)]
    secrets += [json.dumps(provider.jwks()[0]).encode(), b""]
    for secret in secrets:
        for algorithm in ("HS256", "RS256"):
            signed = f"{_encoded({'alg': algorithm, 'kid': 'first'})}.{provider.token().split('.')[1]}"
            code = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
            _refused(_openid(provider), f"{signed}.{base64.urlsafe_b64encode(code).rstrip(b'=').decode()}")


def test_an_algorithm_that_is_not_allowed_is_refused(provider: Provider) -> None:
    _refused(_openid(provider), provider.token(headers={"alg": "RS512"}))
    _refused(_openid(provider), provider.token(headers={"alg": "PS256"}))
    _refused(_openid(provider, algorithms=["ES256"]), provider.token())


def test_key_in_the_token_is_ignored(provider: Provider) -> None:
    own = new_key()
    evil = Provider("http://127.0.0.1:9", {"first": own})
    for headers in ({"jwk": evil.jwks()[0]}, {"jku": "http://127.0.0.1:9/jwks"}, {"kid": "../../dev/null"}):
        _refused(_openid(provider), provider.token(key=own, headers=headers))


def test_logout_token_is_refused(provider: Provider) -> None:
    _refused(_openid(provider), provider.token(headers={"typ": "logout+jwt"}))


@pytest.mark.parametrize("token", ["", "a.b.c", "....", "eyJhbGciOiJSUzI1NiJ9.e30.", "\udc80.a.b", "a" * 10_000])
def test_malformed_token_is_refused(provider: Provider, token: str) -> None:
    _refused(_openid(provider), token)


def test_new_keys_are_fetched_when_they_are_first_seen(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    openid = _openid(provider)
    old = provider.token()
    openid.authenticate_token(old)
    provider.rotate("second")
    _refused(
        openid, provider.token()
    )  # The keys were just fetched, so that unknown keys cannot cause repeated requests.
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.0)
    assert openid.authenticate_token(provider.token()).name == "rita"
    _refused(openid, old)  # The provider revoked its key.


def test_invented_tokens_do_not_flood_the_provider(provider: Provider) -> None:
    openid = _openid(provider)
    for number in range(20):
        _refused(openid, provider.token(key=provider.keys["first"], headers={"kid": f"invented-{number}"}))
    assert provider.requested_paths.count("/jwks") == 1


@pytest.mark.parametrize(
    ("claims", "claim", "role"),
    [
        ({"roles": "ml"}, "roles", Role.TRAINER),
        ({"roles": ["x", "radiologist", "ml"]}, "roles", Role.TRAINER),
        ({"realm_access": {"roles": ["radiologist"]}}, "realm_access.roles", Role.ANNOTATOR),
        ({"https://h.example/roles": ["ml"]}, "https://h.example/roles", Role.TRAINER),
    ],
)
def test_roles_are_read_from_the_configured_claim(
    provider: Provider, claims: dict[str, object], claim: str, role: Role
) -> None:
    token = provider.token(**{"roles": None, **claims})
    assert _openid(provider, roles_claim=claim).authenticate_token(token).role is role


@pytest.mark.parametrize("roles", [None, [], ["admin"], "annotator", {"radiologist": True}, [["radiologist"]], 7])
def test_user_without_a_known_role_is_refused(provider: Provider, roles: object) -> None:
    assert "no role" in _refused(_openid(provider), provider.token(roles=roles), 403)


def test_configured_audience_is_checked(provider: Provider) -> None:
    token = provider.token(aud=["api://baps", "other"])
    _refused(_openid(provider), token)
    assert _openid(provider, audience="api://baps").authenticate_token(token).name == "rita"


def test_password_is_passed_to_the_provider(provider: Provider) -> None:
    openid = _openid(provider)
    with pytest.raises(HTTPException, match="takes no passwords from programs"):
        openid.exchange_password("rita", "open sesame")
    provider.discovery_changes, provider.password = {"grant_types_supported": ["password"]}, "open sesame"
    openid = _openid(provider)
    token, principal = openid.exchange_password("rita", "open sesame")
    assert openid.authenticate_token(token) == principal
    assert principal.name == "rita"
    with pytest.raises(HTTPException, match="password is wrong"):
        openid.exchange_password("rita", "wrong")


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"issuer": "http://127.0.0.1:1"}, "another issuer"),
        ({"jwks_uri": "http://keys.example/jwks"}, "begins with https"),
        ({"jwks_uri": None}, "begins with https"),
    ],
)
def test_invalid_answers_of_the_provider_are_refused(
    provider: Provider, about: dict[str, object], message: str
) -> None:
    token = provider.token()
    provider.discovery_changes = about
    with pytest.raises(BapsError, match=message):
        _openid(provider).authenticate_token(token)


def test_unreachable_provider_is_reported(provider: Provider) -> None:
    with pytest.raises(BapsError, match="does not answer"):
        _openid(Provider("http://127.0.0.1:9")).authenticate_token(provider.token())


def test_helper_signs_tokens_that_pyjwt_reads(provider: Provider) -> None:
    public = provider.keys["first"].public_key()  # type: ignore[union-attr]
    claims = jwt.decode(provider.token(), public, algorithms=["RS256"], audience="baps")  # type: ignore[arg-type]
    assert claims["iss"] == provider.issuer


def test_unresponsive_provider_is_not_queried_for_each_token(provider: Provider) -> None:
    openid = _openid(provider)
    good, key = provider.token(), provider.keys.popitem()
    provider.discovery_changes = {"issuer": "https://elsewhere.example"}  # Any other failure counts too.
    for _ in range(5):
        with pytest.raises(BapsError):
            openid.authenticate_token(good)
    assert len(provider.requested_paths) == 1
    provider.discovery_changes, provider.keys = {}, dict([key])
    openid._failure = (time.monotonic() - module._RETRY_SECONDS, BapsError(""))
    assert openid.authenticate_token(good).name == "rita"


def test_endless_answer_is_aborted(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dribbling:
        parts = 0

        def read1(self, *_: object, **__: object) -> bytes:
            self.parts += 1
            return b" "

    monkeypatch.setattr(module, "_READ_SECONDS", 0.05)
    reply, raw = requests.Response(), Dribbling()
    reply.status_code, reply.raw = 200, raw
    monkeypatch.setattr(OpenId, "_request", lambda *_, **__: reply)
    monkeypatch.setattr(requests.Response, "close", lambda _: None)
    with pytest.raises(BapsError, match="no usable answer"):
        _openid(provider).authenticate_token(provider.token())
    assert raw.parts > 1
