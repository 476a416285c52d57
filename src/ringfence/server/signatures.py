"""Signed file URLs, which name no sandbox: the signature itself tells which one it was made for."""

import base64
import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence

from ringfence.server.records import Record

_OPERATIONS = {"GET": "read", "HEAD": "read", "POST": "write"}


def match_signature(records: Iterable[Record], method: str, query: Mapping[str, Sequence[str]]) -> str | None:
    """The id of the sandbox whose token signed this URL; None when there is none.

    Only finds the sandbox: that the signature is valid, and not expired, is checked by envd inside.
    """
    operation = _OPERATIONS.get(method)
    given = _first(query, "signature")
    if operation is None or not given:
        return None
    expiration = _first(query, "signature_expiration")
    parts = [_first(query, "path"), operation, _first(query, "username")]
    for record in records:
        if record.access_token is None:
            continue
        text = ":".join([*parts, record.access_token, *([expiration] if expiration else [])])
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        # A plus sign that was not percent-encoded arrives as a space.
        if hmac.compare_digest(f"v1_{digest}".encode(), given.replace(" ", "+").encode()):
            return record.sandbox_id
    return None


def _first(query: Mapping[str, Sequence[str]], name: str) -> str:
    values = query.get(name)
    return values[0] if values else ""
