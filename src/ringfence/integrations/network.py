"""What a new sandbox may reach, as options of the SDK's ``create``, on whichever backend it is."""

from typing import Any

EVERYTHING = "0.0.0.0/0"
LEARN = "learn"
"""The internet, and afterwards the list of what was reached."""
_PACKAGES = "@packages"
_PUBLIC_INDEXES = ("pypi.org", "files.pythonhosted.org", "registry.npmjs.org")


def network_options(choice: str | None, backend: str) -> dict[str, Any]:
    """Options for `choice`: ``none``, ``packages``, ``internet``, ``learn``, or names, addresses and blocks
    separated by commas. None: what the backend does by itself. A Ringfence server knows which package
    indexes its machine uses; on E2B's cloud they are the public ones.
    """
    if choice is None:
        return {}
    if choice in ("internet", LEARN):
        return {"allow_internet_access": True}
    if choice == "none":
        return {"allow_internet_access": False}
    allow: list[str] = []
    for entry in (part.strip() for part in choice.split(",")):
        if entry == "packages":
            allow += _PUBLIC_INDEXES if backend == "e2b" else (_PACKAGES,)
        elif entry:
            allow.append(entry)
    return {"network": {"allow_out": allow, "deny_out": [EVERYTHING]}}
