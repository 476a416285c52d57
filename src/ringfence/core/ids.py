"""Identifiers: unguessable, lower-case, safe in a path, a header and a host name."""

import re
import secrets

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_SANDBOX_ID = re.compile(r"^[a-z0-9]{20,40}$")


def new_sandbox_id() -> str:
    """A new sandbox id: ``i`` and 24 characters of [0-9a-z] (124 bits), the shape E2B's proxies accept."""
    return "i" + "".join(secrets.choice(_ALPHABET) for _ in range(24))


def is_sandbox_id(text: str) -> bool:
    """Whether `text` has the shape of a sandbox id; says nothing of whether one exists."""
    return _SANDBOX_ID.fullmatch(text) is not None


def new_api_key() -> str:
    """A new API key in E2B's format, ``e2b_<hex>`` (160 bits), which every SDK version accepts."""
    return "e2b_" + secrets.token_hex(20)


def new_token() -> str:
    """A new bearer token (256 bits, hex)."""
    return secrets.token_hex(32)
