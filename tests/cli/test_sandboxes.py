import json
import os
import subprocess
import sys
from typing import Any

import pytest
from e2b_code_interpreter import Sandbox

Ringfence = Any


@pytest.fixture
def ringfence(server: Any) -> Ringfence:
    def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        named = {"RINGFENCE_URL": server.url, "RINGFENCE_API_KEY": server.key}
        return subprocess.run(
            [sys.executable, "-P", "-m", "ringfence", *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or named)},
        )

    return run


@pytest.fixture
def sandbox(server: Any) -> Any:
    with Sandbox.create("base", timeout=120, metadata={"task": "listing"}, **server.options) as sandbox:
        yield sandbox


def test_sandboxes_are_listed_and_killed(ringfence: Ringfence, sandbox: Any) -> None:
    listed = {one["id"]: one for one in json.loads(ringfence("ps", "--json").stdout)}
    assert listed[sandbox.sandbox_id]["template"] == "base"
    assert listed[sandbox.sandbox_id]["metadata"] == {"task": "listing"}
    (row,) = [line for line in ringfence("ps").stdout.splitlines() if line.startswith(sandbox.sandbox_id)]
    assert "running" in row
    assert "task=listing" in row
    assert sandbox.sandbox_id in ringfence("ps", "--quiet").stdout.split()

    killed = ringfence("kill", sandbox.sandbox_id)
    assert (killed.returncode, killed.stdout) == (0, f"{sandbox.sandbox_id}: killed\n")
    assert not sandbox.is_running()
    again = ringfence("kill", sandbox.sandbox_id)
    assert again.returncode == 1
    assert f"no such sandbox: {sandbox.sandbox_id}" in again.stderr


def test_another_key_neither_sees_nor_kills_them(ringfence: Ringfence, server: Any, sandbox: Any) -> None:
    stranger = {"RINGFENCE_URL": server.url, "RINGFENCE_API_KEY": server.stranger}
    assert sandbox.sandbox_id not in ringfence("ps", "--quiet", **stranger).stdout
    assert ringfence("kill", sandbox.sandbox_id, **stranger).returncode == 1
    assert sandbox.is_running()


def test_templates_are_those_of_the_same_server(ringfence: Ringfence, server: Any) -> None:
    for named in (
        {"RINGFENCE_URL": server.url, "RINGFENCE_API_KEY": server.key},
        {"E2B_API_URL": server.url, "E2B_SANDBOX_URL": server.url, "E2B_API_KEY": server.key},
    ):
        assert "base" in ringfence("template", "list", **named).stdout
        missing = ringfence("template", "delete", "no-such", **named)
        assert missing.returncode == 1
        assert "template 'no-such' not found" in missing.stderr
    unnamed = ringfence("template", "delete", "no-such", RINGFENCE_BACKEND="local")
    assert "no server is named: set RINGFENCE_URL" in unnamed.stderr
    assert "Traceback" not in unnamed.stderr


def test_a_wrong_key_and_no_server_are_one_line(ringfence: Ringfence, server: Any) -> None:
    wrong = ringfence("ps", RINGFENCE_URL=server.url, RINGFENCE_API_KEY="e2b_00")
    assert wrong.returncode == 1
    assert "invalid API key" in wrong.stderr
    unnamed = ringfence("kill", "i0", RINGFENCE_BACKEND="local")
    assert unnamed.returncode == 1
    assert "no server is named: set RINGFENCE_URL" in unnamed.stderr
    assert "Traceback" not in wrong.stderr + unnamed.stderr
