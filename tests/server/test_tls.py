"""HTTPS: with a certificate of the operator's, or one made for local use that clients can trust."""

import http.client
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ringfence.core.errors import ConfigurationError
from ringfence.server.serve import run
from ringfence.server.settings import ServeSettings

DOMAIN = "sbx.test"


@pytest.fixture
def secure(tmp_path: Path, launch: Callable[..., Any]) -> Iterator[tuple[Any, Path]]:
    running = launch(tmp_path, templates="base", RINGFENCE_TLS="true", RINGFENCE_DOMAIN=DOMAIN)
    yield running, tmp_path / "tls" / "ca.pem"
    assert running.stop() == 0


def ask(
    authority: Path, port: int, host: str, path: str, headers: dict[str, str]
) -> http.client.HTTPResponse:
    """A request over TLS to loopback, for a host name that no resolver knows."""
    context = ssl.create_default_context(cafile=str(authority))
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.connect()
    connection.sock = context.wrap_socket(connection.sock, server_hostname=host)
    connection.request("GET", path, headers={"Host": f"{host}:{port}", "Connection": "close", **headers})
    return connection.getresponse()


def test_the_sdk_works_over_https(secure: tuple[Any, Path]) -> None:
    running, authority = secure
    program = """
from e2b_code_interpreter import Sandbox
with Sandbox.create("base") as sandbox:
    print(sandbox.run_code("6 * 7").text, sandbox.commands.run("echo hi").stdout.strip())
"""
    environment = {
        **os.environ,
        "E2B_API_URL": running.url,
        "E2B_SANDBOX_URL": running.url,
        "E2B_API_KEY": running.key,
        "SSL_CERT_FILE": str(authority),
    }
    assert running.url.startswith("https://127.0.0.1:")
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.stdout == "42 hi\n", result.stderr


def test_a_sandbox_has_a_host_name_of_its_own(secure: tuple[Any, Path]) -> None:
    running, authority = secure
    port = int(running.url.rpartition(":")[2])
    context = ssl.create_default_context(cafile=str(authority))
    api = http.client.HTTPSConnection("127.0.0.1", port, context=context)
    headers = {"X-API-Key": running.key, "Content-Type": "application/json"}
    api.request("POST", "/v2/sandboxes", body='{"templateID": "base"}', headers=headers)
    sandbox_id = json.load(api.getresponse())["sandboxID"]
    api.close()
    host = f"49983-{sandbox_id}.{DOMAIN}"
    assert ask(authority, port, host, "/health", {}).status == 204


def test_a_name_of_somebody_else_is_not_certified(secure: tuple[Any, Path]) -> None:
    running, authority = secure
    port = int(running.url.rpartition(":")[2])
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(authority, port, "example.org", "/health", {})


def test_the_keys_are_private(secure: tuple[Any, Path]) -> None:
    _, authority = secure
    modes = {path.name: path.stat().st_mode & 0o777 for path in authority.parent.glob("*.key")}
    assert modes == {"ca.key": 0o600, "server.key": 0o600}


def test_half_a_certificate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="give both"):
        run(ServeSettings(data_dir=tmp_path, port=0, tls_cert=tmp_path / "c.pem"))


def test_a_certificate_that_is_not_there_is_refused(tmp_path: Path) -> None:
    settings = ServeSettings(
        data_dir=tmp_path, port=0, tls_cert=tmp_path / "c.pem", tls_key=tmp_path / "k.pem"
    )
    with pytest.raises(ConfigurationError, match="cannot read"):
        run(settings)
