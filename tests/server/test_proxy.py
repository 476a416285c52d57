"""Sandbox traffic: by headers, by host name, by signature; ports of user code; what is closed or gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest
from e2b_code_interpreter import Sandbox

if TYPE_CHECKING:
    from conftest import RunningServer

ENVD = 49983

WEB_SERVER = r"""
import base64, hashlib, http.server, json, socket

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.headers.get("Upgrade", "").lower() == "websocket":
            return self.websocket()
        body = json.dumps({"path": self.path, "headers": dict(self.headers)}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Set-Cookie", "ringfence_session=forged")
        self.send_header("Set-Cookie", "own=1")
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        size = 0
        if "Content-Length" in self.headers:
            size = len(self.rfile.read(int(self.headers["Content-Length"])))
        else:
            while length := int(self.rfile.readline(), 16):
                size += len(self.rfile.read(length + 2)) - 2
            self.rfile.readline()
        body = str(size).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def websocket(self):
        guid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        key = hashlib.sha1((self.headers["Sec-WebSocket-Key"] + guid).encode()).digest()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(key).decode())
        self.end_headers()
        while data := self.connection.recv(65536):
            self.connection.sendall(data)
        self.close_connection = True

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""


@pytest.fixture
def web(sandbox: Sandbox) -> Sandbox:
    """A sandbox in which user code listens on port 8000, on loopback only."""
    sandbox.files.write("/home/user/web.py", WEB_SERVER)
    sandbox.commands.run("python3 /home/user/web.py", background=True)
    sandbox.commands.run("until (exec 3<>/dev/tcp/127.0.0.1/8000) 2>/dev/null; do sleep 0.02; done")
    return sandbox


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as made:
        yield made


def by_headers(sandbox_id: str, port: int, **more: str) -> dict[str, str]:
    return {"E2b-Sandbox-Id": sandbox_id, "E2b-Sandbox-Port": str(port), **more}


def test_by_headers_and_by_host(server: RunningServer, sandbox: Sandbox, client: httpx.Client) -> None:
    assert client.get("/health", headers=by_headers(sandbox.sandbox_id, ENVD)).status_code == 204
    host = sandbox.get_host(ENVD)
    assert host == f"{ENVD}-{sandbox.sandbox_id}.localhost:{server.port}"
    assert client.get("/health", headers={"Host": host}).status_code == 204


def test_the_token_is_asked_for(sandbox: Sandbox, client: httpx.Client) -> None:
    headers = by_headers(sandbox.sandbox_id, ENVD)
    assert client.get("/envs", headers=headers).status_code == 401
    token = sandbox._envd_access_token or ""
    assert client.get("/envs", headers={**headers, "X-Access-Token": token}).status_code == 200


@pytest.mark.parametrize("path", ["/init", "//init", "/%69nit", "/init/", "/x/../freeze", "/upgrade"])
def test_control_routes_do_not_exist(sandbox: Sandbox, server: RunningServer, path: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nE2b-Sandbox-Id: {sandbox.sandbox_id}\r\n"
            f"E2b-Sandbox-Port: {ENVD}\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}".encode()
        )
        answer = raw.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b'"code":404' in answer


def test_unknown_and_killed_sandboxes(sandbox: Sandbox, client: httpx.Client) -> None:
    for name in ("inosuchsandbox0000000000", "../etc/passwd", sandbox.sandbox_id):
        sandbox.kill()
        response = client.get("/health", headers=by_headers(name, ENVD))
        assert response.status_code == 502
        assert response.json()["message"] == "The sandbox was not found"
        assert response.json()["code"] == 502
    browser = {"Accept": "text/html", "User-Agent": "Mozilla/5.0"}
    page = client.get("/<script>", headers=by_headers(sandbox.sandbox_id, 8000, **browser))
    assert page.status_code == 502
    assert page.headers["content-type"].startswith("text/html")
    assert "<script>" not in page.text


def test_a_closed_port(sandbox: Sandbox, client: httpx.Client) -> None:
    response = client.get("/", headers=by_headers(sandbox.sandbox_id, 8123))
    assert response.status_code == 502
    assert response.json() == {
        "sandboxId": sandbox.sandbox_id,
        "message": "The sandbox is running but port is not open",
        "port": 8123,
        "code": 502,
    }


def test_user_code_sees_no_credential(server: RunningServer, web: Sandbox, client: httpx.Client) -> None:
    more = {"X-API-KEY": server.key, "X-Access-Token": "secret", "Authorization": f"Bearer {server.key}"}
    response = client.get("/a%2Fb?c=d", headers=by_headers(web.sandbox_id, 8000, **more))
    seen = response.json()
    assert seen["path"] == "/a%2Fb?c=d"
    assert not {"x-api-key", "x-access-token", "authorization"} & {name.lower() for name in seen["headers"]}
    assert response.headers.get_list("set-cookie") == ["own=1"]


def test_bodies_of_both_kinds(web: Sandbox, client: httpx.Client) -> None:
    headers = by_headers(web.sandbox_id, 8000)
    assert client.post("/", headers=headers, content=b"x" * 3_000_000).text == "3000000"
    assert client.post("/", headers=headers, content=iter([b"y" * 70_000] * 30)).text == "2100000"
    assert client.post("/", headers=headers, content=b"").text == "0"


def test_head_and_many_requests_on_one_connection(web: Sandbox, client: httpx.Client) -> None:
    headers = by_headers(web.sandbox_id, 8000)
    assert client.head("/", headers=headers).status_code == 501
    for number in range(20):
        assert client.get(f"/{number}", headers=headers).json()["path"] == f"/{number}"


def test_a_websocket(server: RunningServer, web: Sandbox) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(
            f"GET /ws HTTP/1.1\r\nHost: {web.get_host(8000)}\r\nConnection: keep-alive, Upgrade\r\n"
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nearly".encode()
        )
        stream = raw.makefile("rb")
        head = b"".join(iter(stream.readline, b"\r\n"))
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
        assert stream.read(5) == b"early"
        sent = bytes(range(256)) * 4096
        raw.sendall(sent)
        assert stream.read(len(sent)) == sent
        web.kill()
        with contextlib.suppress(ConnectionResetError):
            assert stream.read() == b""


def test_an_upgrade_that_is_not_taken(server: RunningServer, sandbox: Sandbox) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(
            f"GET /health HTTP/1.1\r\nHost: {sandbox.get_host(ENVD)}\r\nConnection: Upgrade\r\n"
            "Upgrade: websocket\r\n\r\n".encode()
        )
        assert raw.makefile("rb").read().startswith(b"HTTP/1.1 204 ")


def test_an_answer_before_the_end_of_the_request(
    server: RunningServer, sandbox: Sandbox, client: httpx.Client
) -> None:
    """The guest knows enough after one message of a stream. What follows must not run into the rest."""
    headers = by_headers(sandbox.sandbox_id, 49983, **{"X-Access-Token": sandbox._envd_access_token or ""})
    message = json.dumps({"process": {"pid": 987654}}).encode()
    envelope = b"\0" + len(message).to_bytes(4, "big") + message
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = (
        f"POST /process.Process/Connect HTTP/1.1\r\nHost: x\r\n{head}"
        "Content-Type: application/connect+json\r\n"
        f"Connect-Protocol-Version: 1\r\nTransfer-Encoding: chunked\r\n\r\n{len(envelope):x}\r\n"
    )
    listing = {"url": f"{server.url}/process.Process/List", "headers": headers, "json": {}}
    assert client.post(**listing).status_code == 200
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as unfinished:
        unfinished.sendall(request.encode() + envelope + b"\r\n")
        seen = b""
        while b"not_found" not in seen:
            seen += unfinished.recv(4096) or b"not_found, for it closed"
        answers = [client.post(**listing).status_code for _ in range(4)]
    assert answers == [200] * 4


def test_signed_urls_need_no_header(server: RunningServer, sandbox: Sandbox, client: httpx.Client) -> None:
    upload = urlsplit(sandbox.upload_url("/home/user/signed +.txt", use_signature_expiration=60))
    response = client.post(f"{upload.path}?{upload.query}", files={"file": b"by signature"})
    assert response.status_code == 200
    download = sandbox.download_url("/home/user/signed +.txt")
    assert download.startswith(server.url)
    assert httpx.get(download).text == "by signature"
    forged = httpx.get(download.replace("signed", "other"))
    assert forged.status_code == 401
    assert forged.json()["code"] == 401
    assert httpx.get(f"{server.url}/files?path=/etc/passwd").status_code == 401
    expired = sandbox.download_url("/home/user/signed +.txt", use_signature_expiration=-10)
    assert httpx.get(expired).json() == {"code": 401, "message": "signature is already expired"}


def test_private_ports_ask_for_the_traffic_token(server: RunningServer, client: httpx.Client) -> None:
    with Sandbox.create("base", network={"allow_public_traffic": False}, **server.options) as sandbox:
        assert sandbox.run_code("40 + 2").text == "42"
        refused = client.get("/", headers=by_headers(sandbox.sandbox_id, 8000))
        assert refused.status_code == 403
        assert refused.json()["code"] == 403
        token = {"E2B-Traffic-Access-Token": sandbox.traffic_access_token or ""}
        response = client.get("/", headers=by_headers(sandbox.sandbox_id, 8000, **token))
        assert response.status_code == 502
        assert client.get("/health", headers=by_headers(sandbox.sandbox_id, ENVD)).status_code == 204


def test_the_host_can_be_masked(server: RunningServer, client: httpx.Client) -> None:
    with Sandbox.create(
        "base", network={"mask_request_host": "app.internal:${PORT}"}, **server.options
    ) as sandbox:
        sandbox.files.write("/home/user/web.py", WEB_SERVER)
        sandbox.commands.run("python3 /home/user/web.py", background=True)
        sandbox.commands.run("until (exec 3<>/dev/tcp/127.0.0.1/8000) 2>/dev/null; do sleep 0.02; done")
        seen = client.get("/", headers=by_headers(sandbox.sandbox_id, 8000)).json()
        assert {name.lower(): value for name, value in seen["headers"].items()}["host"] == "app.internal:8000"


async def test_a_megabyte_up_and_down(server: RunningServer, async_sandbox: Any) -> None:
    data = bytes(range(256)) * 4096
    await async_sandbox.files.write("/home/user/data.bin", data)
    assert bytes(await async_sandbox.files.read("/home/user/data.bin", format="bytes")) == data


async def test_a_client_that_hangs_up_interrupts_the_cell(server: RunningServer, async_sandbox: Any) -> None:
    await async_sandbox.run_code("kept = 1")
    token = async_sandbox._envd_access_token
    headers = by_headers(async_sandbox.sandbox_id, 49999, **{"X-Access-Token": token})
    endless = {"code": "import time\nprint('on', flush=True)\nwhile True: time.sleep(0.05)"}
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=30) as client,
        client.stream("POST", "/execute", json=endless, headers=headers) as response,
    ):
        async for line in response.aiter_lines():
            if '"on' in line:
                break
    started = time.monotonic()
    assert (await asyncio.wait_for(async_sandbox.run_code("kept"), 20)).text == "1"
    assert time.monotonic() - started < 20
