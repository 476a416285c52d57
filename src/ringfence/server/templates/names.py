"""Names of templates and their tags, as E2B writes them: ``name``, ``name:tag``, ``namespace/name:tag``."""

import re

from ringfence.server.errors import ApiError

DEFAULT_TAG = "default"
"""The tag of a build that was given none, and the one that is meant where none is named."""
_NAME = re.compile(r"([a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9_-]*")
_TAG = re.compile(r"[a-z0-9_][a-z0-9._-]*")
_LONGEST = 128


def split(text: str) -> tuple[str, str | None]:
    """A name and its tag, None when there is none. Raises ApiError (400) when it is not a name."""
    name, colon, tag = text.strip().lower().partition(":")
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise ApiError(
            400,
            f"invalid template name {text[:_LONGEST]!r}: letters, digits, '-' and '_', and ':tag' at the end",
        )
    return name, checked_tag(tag) if colon else None


def checked_tag(tag: str) -> str:
    """`tag`, in the form it is kept. Raises ApiError (400) when it cannot be one."""
    tag = tag.strip().lower()
    if not _TAG.fullmatch(tag) or len(tag) > _LONGEST:
        raise ApiError(400, f"invalid tag {tag[:_LONGEST]!r}: letters, digits, '.', '-' and '_' only")
    return tag


def tags_of(given: str | None, more: list[str]) -> list[str]:
    """The tags of a new build, without repetition."""
    tags = [*([given] if given else []), *(checked_tag(tag) for tag in more)]
    return list(dict.fromkeys(tags)) or [DEFAULT_TAG]
