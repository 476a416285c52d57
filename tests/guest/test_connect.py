import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from ringfence.guest.connect import (
    Call,
    ClientStreamEndpoint,
    ConnectError,
    Message,
    ServerStreamEndpoint,
    UnaryEndpoint,
    envelope,
)
from ringfence.guest.envd import fields

JSON = {"content-type": "application/json"}
STREAM = {"content-type": "application/connect+json"}


async def unary(request: Message, call: Call) -> Message:
    if "fail" in request:
        raise ConnectError(request["fail"], "as asked")
    await asyncio.sleep(request.get("sleep", 0))
    return {"echo": request, "text": "\u2028é"}


async def server_stream(request: Message, call: Call) -> AsyncIterator[Message]:
    for number in range(request.get("count", 0)):
        yield {"number": number}
    await asyncio.sleep(request.get("sleep", 0))
    if "fail" in request:
        raise ConnectError(request["fail"], "as asked")


async def client_stream(requests: AsyncIterator[Message], call: Call) -> Message:
    return {"all": [request async for request in requests]}


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = Starlette(
        routes=[
            Route("/unary", UnaryEndpoint(unary)),
            Route("/server", ServerStreamEndpoint(server_stream)),
            Route("/client", ClientStreamEndpoint(client_stream)),
        ]
    )
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://guest") as client:
        yield client


def parse(body: bytes) -> list[tuple[int, Message]]:
    found = []
    while body:
        length = int.from_bytes(body[1:5], "big")
        found.append((body[0], json.loads(body[5 : 5 + length])))
        body = body[5 + length :]
    return found


async def test_unary(client: httpx.AsyncClient) -> None:
    answer = await client.post("/unary", content=b'{"a": 1}', headers=JSON)
    assert (answer.status_code, answer.json()) == (200, {"echo": {"a": 1}, "text": "\u2028é"})
    assert answer.content.isascii()
    assert answer.headers["content-type"] == "application/json"
    charset = {"content-type": "application/json; charset=utf-8"}
    assert (await client.post("/unary", content=b"", headers=charset)).json()["echo"] == {}


@pytest.mark.parametrize(
    ("code", "status"),
    [("not_found", 404), ("already_exists", 409), ("unauthenticated", 401), ("resource_exhausted", 429)],
)
async def test_unary_errors(client: httpx.AsyncClient, code: str, status: int) -> None:
    answer = await client.post("/unary", json={"fail": code})
    assert (answer.status_code, answer.json()) == (status, {"code": code, "message": "as asked"})


@pytest.mark.parametrize("body", [b"{", b"[]", b"1", b'"x"', b"\xff", b"[" * 200_000])
async def test_malformed_messages(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post("/unary", content=body, headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_argument")
    answer = await client.post("/server", content=envelope(0, body), headers=STREAM)
    assert parse(answer.content)[-1][1]["error"]["code"] == "invalid_argument"


async def test_what_is_not_connect_json(client: httpx.AsyncClient) -> None:
    assert (await client.get("/unary")).status_code == 405
    for path in ("/unary", "/server", "/client"):
        headers = {"content-type": "application/proto"}
        assert (await client.post(path, content=b"", headers=headers)).status_code == 415
    answer = await client.post("/unary", content=b"{}", headers=JSON | {"content-encoding": "gzip"})
    assert (answer.status_code, answer.json()["code"]) == (501, "unimplemented")


async def test_deadline_of_unary(client: httpx.AsyncClient) -> None:
    headers = {"connect-timeout-ms": "50"}
    answer = await client.post("/unary", json={"sleep": 60}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    headers = {"connect-timeout-ms": "soon"}
    assert (await client.post("/unary", json={}, headers=headers)).status_code == 200


async def test_server_stream(client: httpx.AsyncClient) -> None:
    answer = await client.post("/server", content=envelope(0, b'{"count":2}'), headers=STREAM)
    assert answer.status_code == 200
    assert parse(answer.content) == [(0, {"number": 0}), (0, {"number": 1}), (2, {})]
    answer = await client.post(
        "/server", content=envelope(0, b'{"count":1,"fail":"aborted"}'), headers=STREAM
    )
    assert parse(answer.content)[1:] == [(2, {"error": {"code": "aborted", "message": "as asked"}})]


async def test_deadline_of_server_stream(client: httpx.AsyncClient) -> None:
    headers = STREAM | {"connect-timeout-ms": "50"}
    answer = await client.post("/server", content=envelope(0, b'{"count":1,"sleep":60}'), headers=headers)
    assert parse(answer.content)[0] == (0, {"number": 0})
    assert parse(answer.content)[1][1]["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_argument"),
        (b"\0\0", "invalid_argument"),
        (b"\0\0\0\0\x05{}", "invalid_argument"),
        (envelope(1, b"{}"), "unimplemented"),
        (b"\0\xff\xff\xff\xff", "resource_exhausted"),
        (envelope(2, b"{}"), "invalid_argument"),
    ],
)
async def test_broken_frames(client: httpx.AsyncClient, body: bytes, code: str) -> None:
    answer = await client.post("/server", content=body, headers=STREAM)
    assert answer.status_code == 200
    assert parse(answer.content)[-1][1]["error"]["code"] == code


async def test_client_stream(client: httpx.AsyncClient) -> None:
    async def body() -> AsyncIterator[bytes]:
        whole = b"".join(envelope(0, json.dumps({"n": n}).encode()) for n in range(3)) + envelope(2, b"{}")
        for position in range(len(whole)):  # one byte at a time
            yield whole[position : position + 1]

    answer = await client.post("/client", content=body(), headers=STREAM)
    assert parse(answer.content) == [(0, {"all": [{"n": 0}, {"n": 1}, {"n": 2}]}), (2, {})]
    answer = await client.post("/client", content=envelope(0, b"{}") + b"\0", headers=STREAM)
    assert parse(answer.content)[0][1]["error"]["code"] == "invalid_argument"


def test_fields_are_read_tolerantly() -> None:
    assert fields.text({"watcher_id": "w"}, "watcherId") == "w"
    assert fields.text({"watcherId": None}, "watcherId") == ""
    assert fields.optional_text({}, "tag") is None
    assert fields.integer({"pid": "12"}, "pid") == fields.integer({"pid": 12.0}, "pid") == 12
    assert fields.flag({}, "stdin", True) is True
    assert fields.data({"stdin": "_-8"}, "stdin") == fields.data({"stdin": "/+8="}, "stdin") == b"\xff\xef"
    for read, value in (
        (fields.text, 1),
        (fields.integer, -1),
        (fields.integer, 1 << 32),
        (fields.integer, True),
        (fields.integer, "1" * 100_000),
        (fields.integer, float("nan")),
        (fields.flag, "true"),
        (fields.submessage, []),
        (fields.texts, ["a", 1]),
        (fields.text_map, {"a": 1}),
        (fields.data, "!"),
    ):
        with pytest.raises(ConnectError, match="field 'x' must be"):
            read({"x": value}, "x")
