"""Starting and stopping a server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from e2b_code_interpreter import Sandbox

if TYPE_CHECKING:
    from conftest import RunningServer

SERVE = [sys.executable, "-m", "ringfence", "serve"]


Serve = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts a server with the smallest template, its output piped, in the test's own data directory."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*SERVE, "--data-dir", str(tmp_path / "new" / "data"), *arguments],
            env={**os.environ, "RINGFENCE_TEMPLATES": "base"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)


def line_with(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return line
    raise AssertionError(f"the server ended with {process.wait()} before it said {text!r}")


def test_the_key_is_shown_once_and_kept(serve: Serve) -> None:
    first = serve("--port", "0")
    url = line_with(first, "is ready at ").split()[-1]
    match = re.search(r"e2b_[0-9a-f]{40}", line_with(first, "API key"))
    assert match
    assert httpx.get(f"{url}/sandboxes", headers={"X-API-KEY": match[0]}).json() == []
    first.send_signal(signal.SIGINT)
    assert "e2b_" not in first.communicate(timeout=30)[0]
    assert first.returncode == 0

    second = serve("--port", "0")
    url = line_with(second, "is ready at ").split()[-1]
    assert httpx.get(f"{url}/sandboxes", headers={"X-API-KEY": match[0]}).status_code == 200
    second.send_signal(signal.SIGTERM)
    assert "e2b_" not in second.communicate(timeout=30)[0]
    assert second.returncode == 0


def test_a_data_directory_in_use(serve: Serve, tmp_path: Path, launch: Callable[..., RunningServer]) -> None:
    mine = launch(tmp_path / "new" / "data", templates="base")
    other = serve("--port", "0")
    output, _ = other.communicate(timeout=60)
    assert other.returncode == 1
    assert "another server uses the data directory" in output
    assert "Traceback" not in output
    assert mine.stop() == 0


def test_a_port_in_use(server: RunningServer, serve: Serve) -> None:
    other = serve("--port", str(server.port))
    output, _ = other.communicate(timeout=60)
    assert other.returncode == 1
    assert f"port {server.port} on 127.0.0.1 is in use" in output
    assert "Traceback" not in output


def test_sandboxes_and_their_streams_end_with_the_server(
    tmp_path: Path, launch: Callable[..., RunningServer]
) -> None:
    mine = launch(tmp_path, templates="base")
    sandbox = Sandbox.create("base", **mine.options)
    handle = sandbox.commands.run("sleep 100", background=True)
    assert mine.stop() == 0
    with pytest.raises(Exception, match=r".+"):
        handle.wait()


def test_the_end_of_the_lifeline_stops_it(serve: Serve) -> None:
    lifeline_read, lifeline_write = os.pipe()
    process = serve("--port", "0", "--lifeline-fd", str(lifeline_read), pass_fds=[lifeline_read])
    os.close(lifeline_read)
    line_with(process, "is ready at ")
    os.close(lifeline_write)
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_second_signal_forces_the_end(serve: Serve) -> None:
    with tempfile.TemporaryDirectory(prefix="rft-", dir="/tmp") as runtime:
        process = serve("--port", "0", "--runtime-dir", f"{runtime}/r")
        line_with(process, "is ready at ")
        process.send_signal(signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=30)
    assert process.returncode in (0, 130)


def test_a_weak_key_is_refused(tmp_path: Path) -> None:
    process = subprocess.run(
        [*SERVE, "--data-dir", str(tmp_path), "--port", "0"],
        env={**os.environ, "RINGFENCE_API_KEY": "short", "RINGFENCE_TEMPLATES": "base"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 1
    assert "RINGFENCE_API_KEY must be at least" in process.stderr
    assert "short" not in process.stderr.replace("too short", "")


def test_beyond_loopback_it_wants_tls_or_to_be_told(tmp_path: Path) -> None:
    process = subprocess.run(
        [*SERVE, "--data-dir", str(tmp_path), "--host", "0.0.0.0", "--port", "0"],
        env={**os.environ, "RINGFENCE_TEMPLATES": "base"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 1
    assert "--tls-cert" in process.stderr
    assert "--plain-http" in process.stderr


def test_what_is_said_on_purpose_is_done(serve: Serve) -> None:
    process = serve("--host", "0.0.0.0", "--port", "0", "--plain-http")
    line_with(process, "is ready at ")


def test_the_log_has_no_key_no_code_and_no_output(
    launch: Callable[..., RunningServer], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mine = launch(tmp_path, templates="base", RINGFENCE_LOG_LEVEL="DEBUG")
    with Sandbox.create("base", envs={"A": "value-in-envs"}, **mine.options) as sandbox:
        sandbox.commands.run("echo said-by-command", envs={"B": "value-in-envs"})
        sandbox.run_code("print('said-by-' + 'code')")
        sandbox.files.write("/tmp/a", "content-of-file")
        token = sandbox._envd_access_token
    mine.stop()
    said = capfd.readouterr()
    secrets = [mine.key, mine.stranger, token, "value-in-envs", "said-by-", "content-of-file"]
    assert not [secret for secret in secrets if secret and secret in said.err + said.out]
    assert "killing sandbox" in said.err, "it does log"
