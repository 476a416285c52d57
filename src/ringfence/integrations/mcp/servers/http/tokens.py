"""Verifiers of bearer tokens: our own, a Ringfence server's API keys, JWTs of an authorization server.

Each answers with an `AccessToken` whose ``client_id`` (with issuer and subject) is the caller that sessions
belong to, or with None.
"""

import asyncio
import hashlib
import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import httpx
import jwt
from mcp.server.auth.provider import AccessToken

_log = logging.getLogger(__name__)

_REQUEST_SECONDS = 10.0
_KNOWN_SECONDS = 60.0
_REFUSED_SECONDS = 5.0
_REMEMBERED = 4096
_KEYS_SECONDS = 600.0
_KEYS_RETRY_SECONDS = 30.0
_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


def digest_of(token: str) -> str:
    """What a token is remembered by."""
    return hashlib.sha256(token.encode()).hexdigest()


class OwnTokens:
    """Tokens that the operator named in the settings."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._callers = [(digest_of(token), name) for token, name in names.items()]

    async def verify_token(self, token: str) -> AccessToken | None:
        """The caller with this token; compared in constant time."""
        digest = digest_of(token)
        found = None
        for known, name in self._callers:
            if hmac.compare_digest(known, digest):
                found = AccessToken(token=token, client_id=f"token:{name}", scopes=[])
        return found


class ServerKeys:
    """API keys of the Ringfence server at `url`: it is asked, and its answer is remembered for a minute."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._seen: OrderedDict[str, tuple[bool, float]] = OrderedDict()

    async def verify_token(self, token: str) -> AccessToken | None:
        """The caller with this key, when the server accepts it. False when it does not answer, too."""
        digest = digest_of(token)
        accepted, until = self._seen.get(digest, (False, 0.0))
        if time.monotonic() >= until:
            accepted = await self._ask(token)
            until = time.monotonic() + (_KNOWN_SECONDS if accepted else _REFUSED_SECONDS)
            self._seen[digest] = (accepted, until)
            while len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
        return AccessToken(token=token, client_id=f"key:{digest}", scopes=[]) if accepted else None

    async def _ask(self, token: str) -> bool:
        try:
            async with httpx.AsyncClient(timeout=_REQUEST_SECONDS) as client:
                response = await client.get(
                    f"{self._url}/v2/sandboxes", params={"limit": 1}, headers={"X-API-Key": token}
                )
        except (httpx.HTTPError, ValueError) as error:
            _log.warning("a key could not be checked at %s: %s", self._url, type(error).__name__)
            return False
        return response.status_code == 200


class IssuedTokens:
    """JWTs of the authorization server `issuer`, for the resource `audience`.

    The issuer's keys are found by its metadata (RFC 8414, or OpenID's) and fetched again when a token names
    an unknown one.
    """

    def __init__(self, issuer: str, audience: str) -> None:
        self._issuer = issuer
        self._audience = audience
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched = float("-inf")
        self._tried = float("-inf")
        self._fetching = asyncio.Lock()

    async def verify_token(self, token: str) -> AccessToken | None:
        """The caller a valid token stands for: signature, issuer, audience and times are checked."""
        try:
            header = jwt.get_unverified_header(token)
            key = await self._key(header.get("kid"))
            if key is None:
                return None
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=_ALGORITHMS,
                audience=self._audience,
                issuer=[self._issuer, f"{self._issuer}/"],
                options={"require": ["exp", "iss", "aud"]},
                leeway=30,
            )
        except jwt.PyJWTError as error:
            _log.info("a token was refused: %s", type(error).__name__)
            return None
        return self._caller(token, claims)

    def _caller(self, token: str, claims: dict[str, Any]) -> AccessToken | None:
        subject, client = claims.get("sub"), claims.get("client_id") or claims.get("azp")
        if not subject and not client:
            return None
        scopes = claims.get("scope", claims.get("scp", ""))
        return AccessToken(
            token=token,
            client_id=str(client or ""),
            scopes=scopes.split() if isinstance(scopes, str) else [str(scope) for scope in scopes],
            expires_at=int(claims["exp"]),
            resource=self._audience,
            subject=str(subject) if subject else None,
            claims={"iss": self._issuer},
        )

    async def _key(self, kid: str | None) -> jwt.PyJWK | None:
        async with self._fetching:  # who comes while they are fetched waits for them
            now = time.monotonic()
            stale = now - self._fetched > _KEYS_SECONDS or kid not in self._keys
            if stale and now - self._tried > _KEYS_RETRY_SECONDS:
                self._tried = now
                await self._fetch()
        return self._keys.get(kid)

    async def _fetch(self) -> None:
        try:
            async with httpx.AsyncClient(timeout=_REQUEST_SECONDS) as client:
                found = await client.get(await self._keys_url(client))
                found.raise_for_status()
                keys = jwt.PyJWKSet.from_dict(found.json())
        except (httpx.HTTPError, jwt.PyJWTError, ValueError, KeyError) as error:
            _log.warning("the keys of %s could not be fetched: %s", self._issuer, error)
            return
        self._keys = {key.key_id: key for key in keys.keys}
        self._fetched = time.monotonic()

    async def _keys_url(self, client: httpx.AsyncClient) -> str:
        for name in ("oauth-authorization-server", "openid-configuration"):
            response = await client.get(f"{self._issuer}/.well-known/{name}")
            if response.status_code == 200:
                return str(response.json()["jwks_uri"])
        raise ValueError("it has no metadata")
