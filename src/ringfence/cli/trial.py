"""Trying a backend out: is the key taken, and does a line of Python run in a fresh sandbox?"""

import time
from typing import Any

from ringfence.integrations.backend import Backend

_KEY_VARIABLE = {"e2b": "E2B_API_KEY", "remote": "RINGFENCE_API_KEY", "local": "RINGFENCE_API_KEY"}


async def try_backend(backend: Backend) -> dict[str, Any]:
    """What came of it: ``works``, ``error`` with what to do about it, ``key``, ``times_s`` and more."""
    import httpx
    from e2b import AuthenticationException, SandboxException

    found: dict[str, Any] = {"works": False, "error": None, "key": None, "times_s": {}}
    try:
        await _check_key(backend, found)
        await _run_a_line(backend, found)
    except (SandboxException, AuthenticationException, httpx.HTTPError) as error:
        found["error"] = _explain(error, backend, found)
    return found


async def _check_key(backend: Backend, found: dict[str, Any]) -> None:
    """Ask for something that only a valid key gets, and that makes nothing."""
    from e2b_code_interpreter import AsyncSandbox

    started = time.monotonic()
    await AsyncSandbox.list(limit=1, **backend.sdk_options()).next_items()
    found["key"] = "accepted"
    found["times_s"]["key checked"] = round(time.monotonic() - started, 3)


async def _run_a_line(backend: Backend, found: dict[str, Any]) -> None:
    from e2b_code_interpreter import AsyncSandbox

    started = time.monotonic()
    sandbox = await AsyncSandbox.create(template=backend.template, timeout=60, **backend.sdk_options())
    created = time.monotonic()
    try:
        execution = await sandbox.run_code("import sys; sys.version.split()[0]", timeout=30)
        ran = time.monotonic()
    finally:
        await sandbox.kill()
    found["times_s"] |= {
        "sandbox created": round(created - started, 3),
        "first line of code": round(ran - created, 3),
    }
    found["sandbox_python"] = (execution.text or "").strip("'")
    found["works"] = execution.error is None and bool(execution.text)
    if execution.error is not None:
        found["error"] = f"{execution.error.name}: {execution.error.value}"


def _explain(error: Exception, backend: Backend, found: dict[str, Any]) -> str:
    """The error, and what to do about it."""
    import httpx
    from e2b import AuthenticationException

    variable = _KEY_VARIABLE[backend.name]
    said = str(error) or type(error).__name__
    if isinstance(error, AuthenticationException):
        found["key"] = "refused"
        where = "E2B's dashboard has your keys" if backend.name == "e2b" else "the server's operator has it"
        return f"the key in {variable} is refused by {backend.describe()} ({said}). Copy it again: {where}."
    if isinstance(error, httpx.TransportError):
        return (
            f"no connection to {backend.describe()}: {said}. Check the network, a proxy (HTTPS_PROXY) and "
            "the address (E2B_DOMAIN, E2B_API_URL)."
        )
    if "template" in said and "404" in said:
        return f"no sandbox could be made: {said}. RINGFENCE_TEMPLATE must name a template that is there."
    if found["key"] is None:
        return f"the key in {variable} could not be checked: {said}"
    return f"the key is accepted, but no code could be run: {said}"
