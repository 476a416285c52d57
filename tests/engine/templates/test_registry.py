"""Names of images, descriptions of images, and which machines are asked for them."""

import hashlib
import json
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from ringfence.core.errors import TemplateError
from ringfence.engine.templates.registry import manifest
from ringfence.engine.templates.registry.client import RegistryClient
from ringfence.engine.templates.registry.guard import Guard
from ringfence.engine.templates.registry.images import ImageStore
from ringfence.engine.templates.registry.manifest import Blob, Manifest
from ringfence.engine.templates.registry.reference import parse

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "url", "wanted"),
    [
        ("ubuntu", "https://registry-1.docker.io/v2/library/ubuntu", "latest"),
        ("python:3.12-slim", "https://registry-1.docker.io/v2/library/python", "3.12-slim"),
        ("docker.io/library/node:lts", "https://registry-1.docker.io/v2/library/node", "lts"),
        ("owner/name", "https://registry-1.docker.io/v2/owner/name", "latest"),
        ("ghcr.io/a/b/c:v1", "https://ghcr.io/v2/a/b/c", "v1"),
        (f"quay.io/a/b:v1@{DIGEST}", "https://quay.io/v2/a/b", DIGEST),
        ("localhost:5000/x", "http://localhost:5000/v2/x", "latest"),
        ("127.0.0.1:5000/x:y", "http://127.0.0.1:5000/v2/x", "y"),
        ("registry.example:443/x", "https://registry.example:443/v2/x", "latest"),
    ],
)
def test_names_mean_what_they_mean_to_docker(text: str, url: str, wanted: str) -> None:
    reference = parse(text)
    assert (reference.url, reference.wanted) == (url, wanted)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "UPPER/case",
        "a b",
        "x:",
        "x@sha256:short",
        "../x",
        "host.example/",
        "a/../b",
        "x:t/../y",
        "h.e/a?b",
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(TemplateError, match="not the name of an image"):
        parse(text)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/v2/x",
        "https://127.0.0.1/v2/x",
        "https://[::1]/v2/x",
        "https://10.1.1.1/x",
        "https://169.254.169.254/latest",
        "file:///etc/passwd",
    ],
)
def test_only_public_machines_are_asked(url: str) -> None:
    with pytest.raises(TemplateError):
        Guard(()).check(URL(url))


def test_the_operator_may_name_machines() -> None:
    guard = Guard(("127.0.0.1:5000", "registry.internal"))
    guard.check(URL("http://127.0.0.1:5000/v2/x"))
    guard.check(URL("https://registry.internal/v2/x"))
    with pytest.raises(TemplateError):
        guard.check(URL("http://127.0.0.1:5001/v2/x"))


async def test_names_that_resolve_to_loopback_are_refused() -> None:
    connector = Guard(()).connector()
    resolver = connector._resolver
    with pytest.raises(OSError, match="no public address"):
        await resolver.resolve("localhost", 443)
    await connector.close()


def test_the_manifest_for_this_machine_is_chosen() -> None:
    other = {"digest": "sha256:" + "b" * 64, "platform": {"os": "linux", "architecture": "s390x"}}
    mine = {"digest": DIGEST, "platform": {"os": "linux", "architecture": manifest.architecture()}}
    assert manifest.choose({"manifests": [other, mine]}) == DIGEST
    with pytest.raises(TemplateError, match="not there for linux"):
        manifest.choose({"manifests": [other]})


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"config": {"digest": DIGEST, "size": 1}, "layers": "x"},
        {"config": {"digest": "md5:1", "size": 1}, "layers": []},
        {"config": {"digest": DIGEST, "size": -1}, "layers": []},
        {"config": {"digest": DIGEST, "size": 1}, "layers": [{"digest": DIGEST, "size": 1 << 60}]},
        {"config": {"digest": DIGEST, "size": 1}, "layers": [{"digest": DIGEST, "size": 1}] * 1000},
    ],
)
def test_strange_manifests_are_refused(document: dict[str, object]) -> None:
    with pytest.raises(TemplateError):
        manifest.parse_manifest(document)


def test_a_configuration_is_reduced_to_what_makes_sense() -> None:
    config = {"Env": ["A=1", "B=x=y", "broken", 7, "=z"], "WorkingDir": "relative", "User": 5}
    found = manifest.parse_config({"config": config})
    assert found.env == (("A", "1"), ("B", "x=y"))
    assert (found.workdir, found.user) == ("", "")
    assert manifest.parse_config({"config": None}).env == ()


def test_only_objects_are_descriptions() -> None:
    assert manifest.parse_json(json.dumps({"a": 1}).encode()) == {"a": 1}
    for data in (b"[]", b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(TemplateError):
            manifest.parse_json(data)


async def test_an_image_may_not_become_large_by_many_small_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = Blob(f"sha256:{hashlib.sha256(b'').hexdigest()}", 0)
    noted: list[str] = []

    class Unpacking:
        """As an engine whose every layer has 20 GiB when it is unpacked."""

        async def unpack(self, *_: object) -> int:
            return 20 << 30

    class Index:
        begin = staticmethod(noted.append)

    class Layers:
        async def fetch(self, _: Blob, target: Path) -> None:
            target.touch()

    store = ImageStore(Unpacking(), Index(), tmp_path, None)  # type: ignore[arg-type]
    with pytest.raises(TemplateError, match="more than 32 GiB of files"):
        await store._unpack(
            Layers(),  # type: ignore[arg-type]
            Manifest(blob, (blob, blob, blob)),
            blob.digest,
            tmp_path,
            lambda _: None,
        )
    assert len(noted) == 1


async def test_a_redirect_to_nonsense_is_told() -> None:
    async def nonsense(_: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "//["})

    application = web.Application()
    application.router.add_get("/v2/{rest:.*}", nonsense)
    async with TestServer(application) as server:
        host = f"127.0.0.1:{server.port}"
        async with RegistryClient(parse(f"{host}/a/b"), None, Guard([host])) as client:
            with pytest.raises(TemplateError, match="cannot be used"):
                await client.manifest("latest")
