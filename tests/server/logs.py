"""What the server writes down about a sandbox."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from e2b_code_interpreter import Sandbox

    from conftest import RunningServer


def logged(server: RunningServer, sandbox: Sandbox, text: str) -> str:
    """The first line of the sandbox's log with `text`, once it is there."""
    url = f"{server.url}/sandboxes/{sandbox.sandbox_id}/logs"
    deadline = time.monotonic() + 10
    lines: list[str] = []
    while time.monotonic() < deadline:
        answer = httpx.get(url, headers={"X-API-KEY": server.key}).json()
        lines = [entry["message"] for entry in answer["logEntries"]]
        for line in lines:
            if text in line:
                return line
        time.sleep(0.05)
    raise AssertionError(f"no line with {text!r} in {lines}")
