"""Placeholders in the values of headers: ``${e2b.secrets.NAME}`` stands for a secret's current value."""

import re
from collections.abc import Iterable, Mapping

_PLACEHOLDER = re.compile(r"\$\{e2b\.([^{}]*)\}")
_SECRETS = "secrets."


def secrets_in(texts: Iterable[str]) -> set[str]:
    """The names of the secrets that texts refer to."""
    return {
        key.removeprefix(_SECRETS)
        for text in texts
        for key in _PLACEHOLDER.findall(text)
        if key.startswith(_SECRETS)
    }


def others_in(texts: Iterable[str]) -> set[str]:
    """What is referred to that is no secret: a workload's identity token, or something unheard of."""
    return {key for text in texts for key in _PLACEHOLDER.findall(text) if not key.startswith(_SECRETS)}


def filled(text: str, values: Mapping[str, str | None]) -> str:
    """The text with values. Raises KeyError, with the name, for a secret that has none."""

    def value(match: re.Match[str]) -> str:
        name = match[1].removeprefix(_SECRETS)
        found = values.get(name)
        if found is None:
            raise KeyError(name)
        return found

    return _PLACEHOLDER.sub(value, text)
