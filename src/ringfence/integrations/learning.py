"""What a sandbox has contacted, read from its log, and the allow-list that it would need."""

import re

import httpx

from ringfence.core.errors import BackendError
from ringfence.integrations.backend import Backend

_REACHED = re.compile(r"reached (\S+):([0-9]{1,5})$")
_WEB = ("80", "443")
_PACKAGES = "@packages"


async def allow_list(backend: Backend, sandbox_id: str) -> list[str]:
    """Entries for ``allow_out`` that cover everything the sandbox has reached, in order.

    Raises BackendError when the backend does not keep such a log, as E2B's cloud.
    """
    if backend.api_url is None:
        raise BackendError(f"what was contacted cannot be learned on {backend.describe()}")
    headers = {"X-API-KEY": backend.api_key}
    async with httpx.AsyncClient(headers=headers, timeout=30, trust_env=False) as client:
        answer = await client.get(f"{backend.api_url}/sandboxes/{sandbox_id}/logs")
    if answer.status_code != httpx.codes.OK:
        raise BackendError(f"the log cannot be read: {answer.status_code} {answer.text[:200]}")
    entries: dict[str, None] = {}
    for line in answer.json()["logEntries"]:
        if found := _REACHED.fullmatch(line["message"]):
            host, port = found.groups()
            if host == _PACKAGES:
                entries["packages"] = None
                continue
            entries[host if port in _WEB and not _is_address(host) else f"{host}:{port}"] = None
    return sorted(entries)


def _is_address(host: str) -> bool:
    return host.startswith("[") or host.replace(".", "").isdigit()
