"""Lists of sandboxes: filters, order and pages."""

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import unquote, unquote_plus

from ringfence.server.errors import ApiError
from ringfence.server.records import Record

MAX_PAGE = 100
_STATES = {"running", "paused"}


@dataclass(frozen=True)
class Query:
    """What a client asked to be listed. `after` is where the previous page ended: start time and id."""

    states: frozenset[str] = frozenset(_STATES)
    metadata: tuple[tuple[str, str], ...] = ()
    started_after: float | None = None
    template: str | None = None
    ascending: bool = False
    limit: int | None = None
    after: tuple[float, str] | None = None


def parse_query(params: Mapping[str, str], *, paged: bool) -> Query:
    """Read the query string of a list request. `paged` is false for the first generation, which has no pages.

    Raises ApiError (400) for a value that cannot be understood.
    """
    query = Query(frozenset({"running"}), metadata=_parse_metadata(params.get("metadata", "")))
    if not paged:
        return query
    order = params.get("order", "desc")
    if order not in ("asc", "desc"):
        raise ApiError(400, "order must be 'asc' or 'desc'")
    return Query(
        states=_parse_states(params.get("state", "")),
        metadata=query.metadata,
        started_after=_parse_time(params.get("startedAfter", "")),
        template=params.get("template") or None,
        ascending=order == "asc",
        limit=_parse_limit(params.get("limit", "")),
        after=_parse_token(params.get("nextToken", "")),
    )


def select(records: Iterable[Record], query: Query) -> tuple[list[Record], str | None]:
    """The records that `query` asks for, in order, and the token of the next page (None on the last)."""
    found = [record for record in records if _matches(record, query)]
    found.sort(key=_position, reverse=not query.ascending)
    if query.after is not None:
        after = query.after
        found = [r for r in found if (_position(r) > after) == query.ascending and _position(r) != after]
    if query.limit is None or len(found) <= query.limit:
        return found, None
    page = found[: query.limit]
    return page, _make_token(_position(page[-1]))


def _position(record: Record) -> tuple[float, str]:
    return (record.started_at, record.sandbox_id)


def _matches(record: Record, query: Query) -> bool:
    return (
        ("paused" if record.paused else "running") in query.states
        and all(record.metadata.get(key) == value for key, value in query.metadata)
        and (query.started_after is None or record.started_at >= query.started_after)
        and (query.template is None or query.template in record.template_names.values())
    )


def _parse_metadata(text: str) -> tuple[tuple[str, str], ...]:
    """Pairs ``k=v&k=v`` whose parts the SDKs percent-encode once more than the query string needs."""
    pairs = []
    for part in text.split("&") if text else ():
        key, equals, value = part.partition("=")
        if not equals:
            raise ApiError(400, "metadata must be pairs of the form key=value, joined by '&'")
        pairs.append((unquote(unquote_plus(key)), unquote(unquote_plus(value))))
    return tuple(pairs)


def _parse_states(text: str) -> frozenset[str]:
    states = frozenset(part.strip() for part in text.split(",") if part.strip())
    if states - _STATES:
        raise ApiError(400, "state must be 'running' or 'paused'")
    return states or frozenset(_STATES)


def _parse_time(text: str) -> float | None:
    if not text:
        return None
    try:
        # A plus sign of the zone's offset arrives as a space from clients that do not encode it.
        moment = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError:
        raise ApiError(400, "startedAfter must be an RFC 3339 time") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _parse_limit(text: str) -> int:
    if not text:
        return MAX_PAGE
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= MAX_PAGE):
        raise ApiError(400, f"limit must be from 1 to {MAX_PAGE}")
    return int(text)


def _make_token(position: tuple[float, str]) -> str:
    return base64.urlsafe_b64encode(f"{position[0]!r}|{position[1]}".encode()).decode()


def _parse_token(text: str) -> tuple[float, str] | None:
    if not text:
        return None
    try:
        moment, _, sandbox_id = base64.urlsafe_b64decode(text.encode()).decode().partition("|")
        return (float(moment), sandbox_id)
    except (ValueError, binascii.Error):
        raise ApiError(400, "nextToken is not one that this server gave") from None
