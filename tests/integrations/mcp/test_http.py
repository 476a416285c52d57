"""The server over HTTP before any code runs: who may call it, from where, with what, and how it ends."""

import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from mcp import MCPError

from ringfence.integrations.mcp.servers.http.tokens import IssuedTokens

TOKEN, OTHER = "a" * 24, "b" * 24
HEADERS = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
StartHttp = Callable[..., Any]


def post(server: Any, **headers: str) -> httpx.Response:
    return httpx.post(f"{server.url}/mcp", json=CALL, headers={**HEADERS, **headers})


async def test_both_generations_list_the_tools_and_nothing_is_started(
    start_http: StartHttp, era: str
) -> None:
    server = start_http()
    async with server.connect(era) as client:
        tools = (await client.list_tools()).tools
        assert [tool.name for tool in tools][:3] == [
            "execute_code",
            "get_execution",
            "interrupt_execution",
        ]
        assert client.server_info is not None
        assert client.server_info.name == "python_executor"
        for tool in tools:
            assert "local_path" not in tool.input_schema["properties"]
            assert len(tool.description or "") < 2000
        sessions = await client.call_tool("list_sessions", {})
        assert sessions.content[0].text == "There are no sessions."
        unknown = await client.call_tool("nope", {})
        assert unknown.is_error
    assert not list(server.errors)


async def test_a_token_is_asked_for_when_there_are_some(start_http: StartHttp, era: str) -> None:
    server = start_http(RINGFENCE_MCP_TOKENS=f"anna={TOKEN},{OTHER}")
    refused = post(server)
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"].startswith("Bearer ")
    assert post(server, Authorization="Bearer " + "c" * 24).status_code == 401
    assert post(server, Authorization=f"Basic {TOKEN}").status_code == 401
    assert httpx.get(f"{server.url}/files/s_{'0' * 32}/etc/passwd").status_code == 401
    assert httpx.get(f"{server.url}/healthz").json() == {"status": "ok"}
    for token in (TOKEN, OTHER):
        async with server.connect(era, token) as client:
            assert (await client.list_tools()).tools
    with pytest.raises((MCPError, httpx.HTTPError, ExceptionGroup)):
        async with server.connect(era, "c" * 24) as client:
            await client.list_tools()


def test_only_known_hosts_and_origins_are_answered(start_http: StartHttp) -> None:
    server = start_http()
    assert post(server, Host="evil.example").status_code == 421
    assert post(server, Origin="https://evil.example").status_code == 403
    files = f"{server.url}/files/s_{'0' * 32}/etc/passwd"
    assert httpx.get(files, headers={"Host": "evil.example"}).status_code == 421
    assert httpx.get(files, headers={"Origin": "https://evil.example"}).status_code == 403
    assert post(server, Origin=server.url).status_code != 403


def test_requests_are_limited_in_size(start_http: StartHttp) -> None:
    server = start_http(RINGFENCE_MCP_MAX_REQUEST="65536")
    response = httpx.post(f"{server.url}/mcp", content=b" " * 70_000, headers=HEADERS)
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("address", "settings", "message"),
    [
        ("0.0.0.0:0", {}, "callers need a token: set RINGFENCE_MCP_TOKENS"),
        ("0.0.0.0:0", {"RINGFENCE_MCP_TOKENS": TOKEN}, "RINGFENCE_MCP_PUBLIC_URL"),
        ("0.0.0.0:0", {"RINGFENCE_MCP_AUTH": "none"}, "callers need a token"),
        ("127.0.0.1:0", {"RINGFENCE_MCP_TOKENS": "short"}, "at least 20"),
        ("127.0.0.1:0", {"RINGFENCE_MCP_AUTH": "oauth"}, "RINGFENCE_MCP_OAUTH_ISSUER"),
        ("127.0.0.1:0", {"RINGFENCE_MCP_AUTH": "keys"}, "RINGFENCE_URL is not set"),
        ("127.0.0.1:0", {"RINGFENCE_MCP_AUTH": "some"}, "RINGFENCE_MCP_AUTH"),
        ("nowhere", {}, "HOST:PORT"),
        ("192.0.2.1:80", {"RINGFENCE_MCP_TOKENS": TOKEN}, "cannot be listened on"),
    ],
)
def test_unsafe_and_wrong_settings_end_the_start_with_one_line(
    address: str, settings: dict[str, str], message: str
) -> None:
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "ringfence", "mcp", "--http", address],
        env={**os.environ, **settings},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert message in ended.stderr
    assert ended.stderr.startswith("ringfence: ")
    assert ended.stderr.count("\n") == 1


def test_a_port_in_use_is_told(start_http: StartHttp) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "ringfence", "mcp", "--http", f"{taken.getsockname()[1]}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert "cannot be listened on" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_signals_end_it_in_order(start_http: StartHttp, number: int) -> None:
    server = start_http()
    async with server.connect() as client:
        await client.list_tools()
    server.process.send_signal(number)
    assert server.process.wait(20) == 0
    assert not list(server.errors)


class _Issuer(BaseHTTPRequestHandler):
    """An authorization server's metadata and keys."""

    def do_GET(self) -> None:
        server: Any = self.server
        url = f"http://127.0.0.1:{server.server_port}"
        answers = {
            "/.well-known/oauth-authorization-server": {"issuer": url, "jwks_uri": f"{url}/keys"},
            "/keys": {"keys": [server.jwk]},
        }
        found = answers.get(self.path)
        body = json.dumps(found).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def issuer() -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Issuer) as server:
        made: Any = server
        made.key = ec.generate_private_key(ec.SECP256R1())
        algorithm = jwt.algorithms.ECAlgorithm(jwt.algorithms.ECAlgorithm.SHA256)
        made.jwk = {**json.loads(algorithm.to_jwk(made.key.public_key())), "kid": "k1", "use": "sig"}
        made.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield made
        server.shutdown()
        thread.join()


def issue(issuer: Any, **changes: Any) -> str:
    claims = {
        "iss": issuer.url,
        "aud": "http://127.0.0.1:1/mcp",
        "sub": "anna",
        "scope": "run",
        "exp": int(time.time()) + 60,
    }
    claims = {name: value for name, value in {**claims, **changes}.items() if value is not None}
    return jwt.encode(claims, issuer.key, "ES256", headers={"kid": "k1"})


async def test_tokens_of_an_authorization_server(start_http: StartHttp, issuer: Any, era: str) -> None:
    server = start_http(
        RINGFENCE_MCP_OAUTH_ISSUER=issuer.url,
        RINGFENCE_MCP_OAUTH_SCOPES="run",
        RINGFENCE_MCP_PUBLIC_URL="http://127.0.0.1:1",
    )
    server.url = _real_url(server)
    refused = post(server)
    assert refused.status_code == 401
    assert "resource_metadata=" in refused.headers["WWW-Authenticate"]
    metadata = httpx.get(f"{server.url}/.well-known/oauth-protected-resource/mcp").json()
    assert metadata["resource"] == "http://127.0.0.1:1/mcp"
    assert metadata["authorization_servers"][0].rstrip("/") == issuer.url
    async with server.connect(era, issue(issuer)) as client:
        assert (await client.list_tools()).tools
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=") + ".e30."
    forged = jwt.encode({"iss": issuer.url}, "x" * 32, "HS256", headers={"kid": "k1"})
    for token in (
        issue(issuer, aud="http://other/mcp"),
        issue(issuer, iss="http://other"),
        issue(issuer, exp=int(time.time()) - 3600),
        issue(issuer, exp=None),
        issue(issuer, sub=None),
        unsigned,
        forged,
        "x",
    ):
        assert post(server, Authorization=f"Bearer {token}").status_code == 401
    assert post(server, Authorization=f"Bearer {issue(issuer, scope='other')}").status_code == 403


def _real_url(server: Any) -> str:
    """Where it really listens, while it thinks that it is reached under another name."""
    for line in Path(f"/proc/{server.process.pid}/net/tcp").read_text().splitlines():
        fields = line.split()
        if fields[3] != "0A":
            continue
        for descriptor in os.listdir(f"/proc/{server.process.pid}/fd"):
            target = os.readlink(f"/proc/{server.process.pid}/fd/{descriptor}")
            if target == f"socket:[{fields[9]}]":
                return f"http://127.0.0.1:{int(fields[1].partition(':')[2], 16)}"
    raise AssertionError("it does not listen")


async def test_who_comes_while_an_issuers_keys_are_fetched_waits_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = IssuedTokens("https://issuer.example", "https://here.example/mcp")
    key = jwt.PyJWK.from_dict({"kty": "oct", "k": "AAAA", "alg": "HS256"})

    async def fetch() -> None:
        await asyncio.sleep(0.01)
        tokens._keys = {"a": key}
        tokens._fetched = time.monotonic()

    monkeypatch.setattr(tokens, "_fetch", fetch)
    assert await asyncio.gather(tokens._key("a"), tokens._key("a")) == [key, key]
