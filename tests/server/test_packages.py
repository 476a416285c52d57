"""Installing packages inside sandboxes, from private indexes on loopback that ask for credentials."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from e2b_code_interpreter import Sandbox

from ringfence.engine.settings import default_cache_dir
from ringfence.engine.templates.build import ensure_template

if TYPE_CHECKING:
    from conftest import RunningServer

ADDRESS = "127.0.0.16"
PASSWORD = "hunter2-of-the-host"
MIRROR = "http://127.0.0.1:3129"
DENY_ALL = ["0.0.0.0/0"]


def wheel(name: str) -> bytes:
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": f"NAME = {name!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w") as archive:
            for path, text in files.items():
                archive.writestr(path, text)
        return buffer.getvalue()


def tarball(name: str) -> bytes:
    files = {
        "package/package.json": json.dumps({"name": name, "version": "1.0.0", "main": "index.js"}),
        "package/index.js": f"module.exports = {name!r}\n",
    }
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for path, text in files.items():
                member = tarfile.TarInfo(path)
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text.encode()))
        return buffer.getvalue()


class Index:
    """Serves ``/simple`` and ``/npm`` to those who have the password, and counts what is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.files = {f"{name}-1.0-py3-none-any.whl": wheel(name) for name in ("tiny", "forged", "other")}
        self.tarballs = {"mini": tarball("mini")}

    def page(self, name: str) -> tuple[str, bytes] | None:
        file = f"{name}-1.0-py3-none-any.whl"
        if file not in self.files:
            return None
        digest = hashlib.sha256(self.files[file] + (b"!" if name == "forged" else b"")).hexdigest()
        return "text/html", f'<a href="../../files/{file}#sha256={digest}">{file}</a>'.encode()

    def document(self, name: str, host: str) -> tuple[str, bytes] | None:
        if name not in self.tarballs:
            return None
        digest = base64.b64encode(hashlib.sha512(self.tarballs[name]).digest()).decode()
        dist = {"tarball": f"http://{host}/npm/{name}/-/{name}-1.0.0.tgz", "integrity": f"sha512-{digest}"}
        version = {"name": name, "version": "1.0.0", "dist": dist}
        document = {"name": name, "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
        return "application/json", json.dumps(document).encode()

    def answer(self, path: str, host: str) -> tuple[str, bytes] | None:
        parts = path.strip("/").split("/")
        if parts[0] == "simple" and len(parts) == 2:
            return self.page(parts[1])
        if parts[0] == "files" and parts[1] in self.files:
            return "application/octet-stream", self.files[parts[1]]
        if parts[0] == "npm" and len(parts) == 2:
            return self.document(parts[1], host)
        if parts[0] == "npm" and len(parts) == 4 and parts[1] in self.tarballs:
            return "application/octet-stream", self.tarballs[parts[1]]
        return None


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    index: Index

    def do_GET(self) -> None:
        self.index.asked.append(self.path)
        expected = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
        allowed = self.headers.get("Authorization") == f"Basic {expected}"
        found = self.index.answer(self.path, self.headers["Host"]) if allowed else None
        kind, body = found or ("text/plain", b"no")
        self.send_response(200 if found else 404 if allowed else 401)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def index() -> Iterator[tuple[Index, int]]:
    made = Index()
    handler = type("_IndexHandler", (_Handler,), {"index": made})
    server = http.server.ThreadingHTTPServer((ADDRESS, 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield made, server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the built templates of the usual one, and no packages."""
    ensure_template("base", default_cache_dir(), lambda _: None)
    directory = tmp_path_factory.mktemp("cache")
    for path in default_cache_dir().iterdir():
        if path.name != "packages":
            (directory / path.name).symlink_to(path)
    return directory


@pytest.fixture(scope="module")
def installing(
    tmp_path_factory: pytest.TempPathFactory,
    cache_dir: Path,
    index: tuple[Index, int],
    starting: Callable[..., RunningServer],
) -> Iterator[RunningServer]:
    url = f"http://me:{PASSWORD}@index.test:{index[1]}"
    running = starting(
        tmp_path_factory.mktemp("packages"),
        templates="base",
        RINGFENCE_CACHE_DIR=str(cache_dir),
        RINGFENCE_NETWORK_HOSTS=f"index.test={ADDRESS},public.test={ADDRESS}",
        RINGFENCE_NETWORK_ALLOW_PRIVATE=ADDRESS,
        UV_DEFAULT_INDEX=f"{url}/simple",
        NPM_CONFIG_REGISTRY=f"{url}/npm/",
        PIP_EXTRA_INDEX_URL="",
        PIP_CONFIG_FILE="/dev/null",
    )
    yield running
    assert running.stop() == 0


Make = Callable[..., Sandbox]


@pytest.fixture
def make(installing: RunningServer) -> Iterator[Make]:
    made: list[Sandbox] = []

    def create(allow: tuple[str, ...] = ("@packages",)) -> Sandbox:
        network = {"allow_out": list(allow), "deny_out": DENY_ALL}
        made.append(Sandbox.create("base", network=network, timeout=180, **installing.options))
        return made[-1]

    yield create
    for sandbox in made:
        sandbox.kill()


def shell(sandbox: Sandbox, command: str) -> str:
    result = sandbox.commands.run(f"({command}) 2>&1 || true", timeout=120)
    return result.stdout.strip()


def cached(cache_dir: Path) -> set[str]:
    return {path.parent.name + path.name for path in (cache_dir / "packages").glob("sha*/*/*")}


def test_a_file_is_fetched_once_for_all_sandboxes(
    make: Make, index: tuple[Index, int], cache_dir: Path
) -> None:
    for _ in range(2):
        sandbox = make()
        assert shell(sandbox, "pip install -q tiny && python3 -c 'import tiny; print(tiny.NAME)'") == "tiny"
    files = [path for path in index[0].asked if path.endswith("tiny-1.0-py3-none-any.whl")]
    assert len(files) == 1
    digest = hashlib.sha256(index[0].files["tiny-1.0-py3-none-any.whl"]).hexdigest()
    assert digest in cached(cache_dir)
    assert (cache_dir / "packages").stat().st_mode & 0o777 == 0o700


def test_npm_installs_from_it_too(make: Make, index: tuple[Index, int], cache_dir: Path) -> None:
    sandbox = make()
    if shell(sandbox, "command -v npm") == "":
        pytest.skip("there is no npm on this machine")
    for _ in range(2):
        shown = shell(
            sandbox,
            "rm -rf ~/p ~/.npm; mkdir ~/p && cd ~/p && npm install --silent mini && "
            "node -e 'console.log(require(\"mini\"))'",
        )
        assert shown == "mini"
    assert sum(path.endswith(".tgz") for path in index[0].asked) == 1
    assert hashlib.sha512(index[0].tarballs["mini"]).hexdigest() in cached(cache_dir)


def test_what_has_another_digest_is_not_kept(make: Make, index: tuple[Index, int], cache_dir: Path) -> None:
    before = cached(cache_dir)
    shown = shell(make(), "pip install forged")
    assert "DO NOT MATCH THE HASHES" in shown
    assert cached(cache_dir) == before


def test_the_credentials_stay_outside(make: Make) -> None:
    sandbox = make()
    assert "tiny" in shell(sandbox, f"curl -sS {MIRROR}/pypi/0/simple/tiny/")
    assert PASSWORD not in shell(sandbox, "env; pip config list; pip install -v tiny; cat /proc/*/environ")


def test_nothing_but_packages_can_be_asked_for(make: Make, index: tuple[Index, int]) -> None:
    sandbox = make()
    for path in (
        "/pypi/0/simple/../secret/", "/pypi/0/simple/..%2f..%2fadmin/", "/pypi/0/files/tiny/../../admin",
        "/pypi/0/files/tiny/%2e%2e", "/pypi/9/simple/tiny/", "/npm/..", "/npm/..%2fadmin", "/npm/@a/..",
        "/npm/-/whoami", "/admin", "/pypi/0/files/tiny/none.whl", "//index.test/admin",
    ):  # fmt: skip
        del index[0].asked[:]
        command = f"curl -sS --path-as-is -o /dev/null -w '%{{http_code}}' '{MIRROR}{path}'"
        assert shell(sandbox, command) == "404", path
        assert [asked for asked in index[0].asked if "admin" in asked or ".." in asked] == []


def test_only_where_the_policy_allows_packages(make: Make) -> None:
    sandbox = make(("public.test",))
    assert "Failed to connect" in shell(sandbox, f"curl -sS {MIRROR}/pypi/0/simple/tiny/")
    sandbox = make()
    sandbox.update_network({"allow_out": ["public.test"], "deny_out": DENY_ALL})
    assert "curl: (" in shell(sandbox, f"curl -sS {MIRROR}/pypi/0/simple/tiny/")


def test_another_index_is_reached_the_ordinary_way(make: Make, index: tuple[Index, int]) -> None:
    sandbox = make(("index.test:*",))
    url = f"http://me:{PASSWORD}@index.test:{index[1]}/simple"
    shown = shell(sandbox, f"pip install -q --trusted-host index.test --index-url {url} other && echo done")
    assert shown == "done"
