"""The control plane's HTTP itself: statuses, error bodies, bounds, and what older SDKs send."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from conftest import RunningServer


@pytest.fixture
def api(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"X-API-KEY": server.key}, timeout=30) as client:
        yield client


@pytest.fixture
def made(api: httpx.Client) -> Iterator[dict[str, Any]]:
    body = api.post("/sandboxes", json={"templateID": "base", "timeout": 120}).json()
    yield body
    api.delete(f"/sandboxes/{body['sandboxID']}")


def assert_error(response: httpx.Response, status: int, text: str = "") -> None:
    assert response.status_code == status
    assert response.json()["code"] == status
    assert text in response.json()["message"]


def test_the_first_generation_of_create(api: httpx.Client) -> None:
    response = api.post("/sandboxes", json={"templateID": "base", "secure": False})
    body = response.json()
    try:
        assert response.status_code == 201
        assert "envdAccessToken" not in body
        detail = api.get(f"/sandboxes/{body['sandboxID']}").json()
        assert detail["startedAt"][:16] <= detail["endAt"][:16]
        assert detail["lifecycle"] == {"autoResume": False, "onTimeout": "kill"}
        # 15 seconds are what the first generation gets when it asks for nothing.
        assert float(detail["endAt"][17:-1]) == pytest.approx(
            (float(detail["startedAt"][17:-1]) + 15) % 60, abs=1e-4
        )
    finally:
        assert api.delete(f"/sandboxes/{body['sandboxID']}").status_code == 204


def test_the_end_stays_byte_for_byte_when_connect_asks_for_less(
    api: httpx.Client, made: dict[str, Any]
) -> None:
    path = f"/sandboxes/{made['sandboxID']}"
    before = api.get(path).json()["endAt"]
    for generation in ("", "/v2"):
        response = api.post(f"{generation}{path}/connect", json={"timeout": 1})
        assert response.status_code == 200
        assert response.json()["envdAccessToken"] == made["envdAccessToken"]
    assert api.post(f"{path}/refreshes", json={"duration": 1}).status_code == 204
    assert api.get(path).json()["endAt"] == before
    assert_error(api.post(f"{path}/connect", json={}), 400, "timeout")
    assert api.post(f"/v2{path}/connect", json={}).status_code == 200
    assert api.get(path).json()["endAt"] > before


def test_the_first_generation_of_list(api: httpx.Client, made: dict[str, Any]) -> None:
    listed = api.get("/sandboxes").json()
    assert made["sandboxID"] in [item["sandboxID"] for item in listed]
    assert api.get("/sandboxes", params={"metadata": "a=b"}).json() == []


def test_resume_and_logs(api: httpx.Client, made: dict[str, Any]) -> None:
    path = f"/sandboxes/{made['sandboxID']}"
    assert_error(api.post(f"{path}/resume", json={}), 409)
    entries = api.get(f"{path}/logs").json()
    assert "started" in entries["logEntries"][0]["message"]
    line = json.loads(entries["logs"][0]["line"])
    assert (line["message"], line["level"]) == (entries["logEntries"][0]["message"], "info")
    assert api.get(f"/v2{path}/logs").json()["logs"] == entries["logEntries"]


def test_templates(api: httpx.Client) -> None:
    listed = api.get("/templates").json()
    base = next(item for item in listed if "base" in item["names"])
    assert api.get("/templates/aliases/base").json() == {"templateID": base["templateID"], "public": True}
    assert api.get(f"/templates/{base['templateID']}").json()["builds"][0]["buildID"] == base["buildID"]
    assert_error(api.get("/templates/aliases/team%2Fno-such%3Atag"), 404, "team/no-such:tag")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/teams"),
    ],
)
def test_what_is_not_there_yet_says_so(api: httpx.Client, method: str, path: str) -> None:
    assert_error(api.request(method, path), 501, "not implemented: ")


def test_what_nobody_knows(api: httpx.Client) -> None:
    assert_error(api.get("/v9/anything"), 404, "not implemented: GET /v9/anything")
    assert_error(api.put("/sandboxes"), 405)
    assert_error(api.post("/sandboxes/inosuchsandbox0000000000/pause"), 404)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"templateID": 5}',
        b'{"templateID": "base", "timeout": "soon"}',
        b'{"templateID": "base", "timeout": 0}',
        b'{"templateID": "base", "metadata": {"a": 1}}',
        b'{"templateID": "base", "envVars": {"A=B": "c"}}',
        b'{"templateID": "base", "envVars": {"A": "\\u0000"}}',
        b'{"templateID": "base", "autoPauseMemory": false}',
        b'{"templateID": "base", "secure": false, "network": {"allowPublicTraffic": false}}',
        b'{"templateID": "base", "network": {"denyOut": ["example.com"]}}',
        b'{"templateID": "base", "network": {"allowOut": ["example.com"]}}',
        b'{"templateID": "base", "network": {"allowOut": ["a b"], "denyOut": ["0.0.0.0/0"]}}',
        b'{"templateID": "base", "network": {"maskRequestHost": "a\\r\\nb"}}',
        json.dumps({"templateID": "base", "envVars": {"A": "x" * 60_000}}).encode(),
    ],
    ids=lambda body: repr(body[:60]),
)
def test_bad_bodies(api: httpx.Client, body: bytes) -> None:
    response = api.post("/sandboxes", content=body)
    assert_error(response, 400)


@pytest.mark.parametrize(
    "query", ["state=odd", "limit=0", "limit=101", "limit=x", "nextToken=%21", "order=up"]
)
def test_bad_lists(api: httpx.Client, query: str) -> None:
    assert_error(api.get(f"/v2/sandboxes?{query}"), 400)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ({"mcp": {"x": {}}}, "mcp"),
        ({"iam": {"tokens": {}}}, "iam"),
        ({"network": {"rules": {"a.test": [{"block": True}]}}}, "network.rules with 'block'"),
        ({"network": {"egressProxy": {"address": "a.test"}}}, "network.egressProxy"),
        ({"network": {"brandNew": 1}}, "network.brandNew"),
    ],
)
def test_options_that_cannot_be_kept_are_refused(api: httpx.Client, body: dict[str, Any], what: str) -> None:
    assert_error(
        api.post("/v2/sandboxes", json={"templateID": "base", **body}), 501, f"not implemented: {what}"
    )


def test_idempotency_keys_have_a_form(api: httpx.Client) -> None:
    response = api.post(
        "/v2/sandboxes", json={"templateID": "base"}, headers={"Idempotency-Key": "Not Allowed"}
    )
    assert_error(response, 400, "Idempotency-Key")


def test_a_request_too_large(api: httpx.Client) -> None:
    assert_error(api.post("/sandboxes", content=b"x" * (2 << 20)), 413)
    assert_error(api.post("/sandboxes", content=iter([b"x" * 65536] * 40)), 413)


def test_a_wrong_key_is_refused_without_reading_the_body(server: RunningServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as stranger:
        stranger.sendall(b"POST /sandboxes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n")
        answer = stranger.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b'"code":401' in answer


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 300 + b"\r\n", 431),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: " + b"b" * 400_000, 431),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: evil.test\r\n\r\n", 403),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.test\r\n\r\n", 403),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else str(value),
)
def test_http_that_is_not_right(server: RunningServer, sent: bytes, status: int) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as stranger:
        stranger.sendall(sent)
        stranger.shutdown(socket.SHUT_WR)
        head, _, body = stranger.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(body)["code"] == status


def test_pages_of_this_machine_may_call(api: httpx.Client, made: dict[str, Any]) -> None:
    """A browser asks first, without the key; the JavaScript SDK reads ``x-next-token``."""
    page = {"Origin": "http://localhost:5173"}
    asks = {**page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    answer = httpx.options(f"{api.base_url}/v2/sandboxes", headers=asks)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-headers"] == "x-api-key"
    assert "POST" in answer.headers["access-control-allow-methods"]
    for path, status in (("/v2/sandboxes", 200), ("/sandboxes/unknown", 404)):
        answer = api.get(path, headers=page)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, page["Origin"])
        assert answer.headers["access-control-expose-headers"] == "x-next-token"
    for origin in ("http://evil.test", f"http://8000-{made['sandboxID']}.localhost"):
        refused = httpx.options(f"{api.base_url}/v2/sandboxes", headers={**asks, "Origin": origin})
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers
    assert "access-control-allow-origin" not in api.get("/v2/sandboxes").headers


def test_an_sdk_that_is_newer_is_told_so(api: httpx.Client) -> None:
    newer = {"User-Agent": "e2b-js-sdk/9.0.1 e2b-code-interpreter/9"}
    message = api.get("/v9/future", headers=newer).json()["message"]
    assert message.startswith("not implemented: GET /v9/future is not known")
    assert "e2b-js-sdk 9.0.1 is newer than" in message
    for agent in ("e2b-js-sdk/2.45.0", "e2b-js-sdk/9", "curl/8"):
        assert "newer" not in api.get("/v9/future", headers={"User-Agent": agent}).json()["message"]
