"""docs/reference/E2B_COMPATIBILITY.md: complete for the installed SDK, and true."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import e2b
import httpx
import pytest
from e2b_code_interpreter import AsyncSandbox, Sandbox

from ringfence.server.clients import TRIED

if TYPE_CHECKING:
    from tests.conftest import RunningServer

MATRIX = Path(__file__).parents[2] / "docs" / "reference" / "E2B_COMPATIBILITY.md"
ROW = re.compile(r"^\| `([^`]+)` \| (yes|no|differs) \| ?(.*?) ?\|$", re.MULTILINE)
GENERATED = re.compile(r'"method": "(\w+)",\s*"url": f?"([^"]+)"')
RPC = re.compile(r'name="(\w+)",\s*service_name="([\w.]+)"')
SDK = Path(e2b.__file__).parent


def matrix() -> dict[str, str]:
    rows = ROW.findall(MATRIX.read_text(encoding="utf-8"))
    assert len({name for name, _, _ in rows if "/health" not in name}) >= len(rows) - 2, "a row is doubled"
    return {name: answer for name, answer, _ in rows}


def operations() -> set[str]:
    """Every operation that the SDK's generated REST clients can send."""
    found = set()
    for source in SDK.glob("**/client/api/*/*.py"):
        match = GENERATED.search(source.read_text(encoding="utf-8"))
        if match:
            path = re.sub(r"_\}", "}", match[2])
            found.add(f"{match[1].upper()} {path}")
    return found


def test_every_operation_of_the_sdk_is_in_it() -> None:
    assert len(operations()) > 40
    assert operations() - matrix().keys() == set()


def test_every_rpc_of_the_sdk_is_in_it() -> None:
    found = set()
    for source in SDK.glob("envd/*/*_connect.py"):
        found |= {f"{service}/{name}" for name, service in RPC.findall(source.read_text(encoding="utf-8"))}
    assert len(found) > 15
    assert found - matrix().keys() == set()


def test_every_option_and_method_of_the_sdk_is_in_it() -> None:
    rows = matrix()
    options = set(inspect.signature(AsyncSandbox.create).parameters) - {"self", "cls"}
    assert options - rows.keys() == set()
    box = object.__new__(Sandbox)
    for prefix, kind in (
        ("Sandbox", AsyncSandbox),
        ("commands", inspect.signature(type(box).commands.fget).return_annotation),
        ("files", inspect.signature(type(box).files.fget).return_annotation),
        ("pty", inspect.signature(type(box).pty.fget).return_annotation),
    ):
        public = {name for name, value in inspect.getmembers(kind, callable) if not name.startswith("_")}
        assert {f"{prefix}.{name}" for name in public} - rows.keys() == set()


def test_the_installed_versions_are_named() -> None:
    text = MATRIX.read_text(encoding="utf-8")
    for package in ("e2b", "e2b-code-interpreter"):
        assert version(package) in text, f"{package} {version(package)} is not in the list of versions tried"


def test_the_versions_that_the_server_knows_are_those_that_were_tried() -> None:
    text = MATRIX.read_text(encoding="utf-8")
    for name, newest in TRIED.items():
        kind = "PyPI `e2b`" if "python" in name else "npm `e2b`"
        assert re.search(rf"{kind}.* \| {re.escape('.'.join(map(str, newest)))}[ |]", text)
    assert ".".join(map(str, TRIED["e2b-python-sdk"])) == version("e2b")


@pytest.mark.parametrize("operation", sorted(operations()))
def test_what_it_says_of_an_operation_is_so(server: RunningServer, operation: str) -> None:
    method, path = operation.split(" ")
    with httpx.Client(base_url=server.url, headers={"X-API-Key": server.key}) as http:
        made = http.post("/v2/sandboxes", json={"templateID": "base", "timeout": 30}).json()
        try:
            path = path.replace("{sandbox_id}", made["sandboxID"])
            path = re.sub(r"\{\w+\}", "00000000-0000-4000-8000-000000000000", path)
            answer = http.request(method, path, json={} if method != "GET" else None)
        finally:
            http.delete(f"/sandboxes/{made['sandboxID']}")
    missing = "not implemented" in answer.text
    assert missing == (matrix()[operation] == "no"), (answer.status_code, answer.text)
    if answer.status_code >= 400:
        body = json.loads(answer.text)
        assert body["code"] == answer.status_code
        assert isinstance(body["message"], str)
    if missing:
        assert answer.status_code == 501
        assert answer.json()["message"].startswith("not implemented: ")


@pytest.fixture(scope="module")
def guest(server: RunningServer) -> Iterator[httpx.Client]:
    """Requests to the envd of a sandbox."""
    box = Sandbox.create("base", timeout=120, **server.options)
    headers = {
        "E2b-Sandbox-Id": box.sandbox_id,
        "E2b-Sandbox-Port": "49983",
        "X-Access-Token": box._envd_access_token,
    }
    with httpx.Client(base_url=server.url, headers=headers) as http:
        yield http
    box.kill()


RPCS = sorted(name for name in matrix() if re.match(r"[a-z]+\.[A-Z]\w+/", name))


@pytest.mark.parametrize("operation", RPCS)
def test_every_rpc_is_answered(guest: httpx.Client, operation: str) -> None:
    for kind, body in (("json", b"{}"), ("connect+json", b"\0\0\0\0\2{}")):
        answer = guest.post(f"/{operation}", content=body, headers={"Content-Type": f"application/{kind}"})
        assert "not implemented" not in answer.text
        assert answer.status_code in (200, 400, 404, 409, 415, 501)


@pytest.mark.parametrize("body", [b"\0\0\0\0\2{}", b"\xff\xfe{\0}\0", b"\xff", b"[" * 100_000, b"[]", b'"'])
def test_bodies_that_are_not_json_objects(guest: httpx.Client, body: bytes) -> None:
    answer = guest.post(
        "/filesystem.Filesystem/Stat", content=body, headers={"Content-Type": "application/json"}
    )
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_argument")
    cell = guest.post("/execute", content=body, headers={"E2b-Sandbox-Port": "49999"})
    assert cell.status_code in (400, 422)


def test_what_no_envd_knows(guest: httpx.Client) -> None:
    unary = guest.post("/process.Process/Levitate", json={})
    assert (unary.status_code, unary.json()["code"]) == (501, "unimplemented")
    assert unary.json()["message"].startswith("not implemented: process.Process/Levitate")
    headers = {"Content-Type": "application/connect+json"}
    stream = guest.post("/process.Process/Levitate", content=b"\0\0\0\0\2{}", headers=headers)
    assert (stream.status_code, stream.content[0]) == (200, 2)
    assert json.loads(stream.content[5:])["error"]["code"] == "unimplemented"
    plain = guest.get("/levitate")
    assert (plain.status_code, plain.json()["code"]) == (404, 404)
    assert plain.json()["message"].startswith("not implemented: GET /levitate")


def test_what_no_interpreter_knows(guest: httpx.Client) -> None:
    answer = guest.get("/levitate", headers={"E2b-Sandbox-Port": "49999"})
    assert (answer.status_code, answer.text[:15]) == (404, "not implemented")
