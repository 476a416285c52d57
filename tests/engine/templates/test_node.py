"""The layer of packages that JavaScript cells need, made by the real npm."""

import base64
import hashlib
import http.server
import io
import json
import re
import shutil
import stat
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ringfence.core.errors import TemplateError
from ringfence.engine.settings import default_cache_dir
from ringfence.engine.templates.cache import LayerCache
from ringfence.engine.templates.node import ensure_node_modules, install, requirements
from ringfence.engine.templates.tools import own_tools
from ringfence.guest.config import NODE_MODULES

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node.js on this machine")
needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm on this machine")

Publish = Callable[[dict[str, str]], dict[str, bytes]]


@pytest.fixture
def cache(tmp_path: Path) -> LayerCache:
    return LayerCache(tmp_path / "cache")


@pytest.fixture
def npm_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes npm use a registry on this machine, and a cache of its own."""

    def use(registry: str) -> None:
        settings = {"registry": registry, "cache": tmp_path / "npm", "noproxy": "127.0.0.1"}
        (tmp_path / "npmrc").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        monkeypatch.setenv("NPM_CONFIG_USERCONFIG", str(tmp_path / "npmrc"))

    return use


@pytest.fixture
def publish(npm_config: Callable[[str], None]) -> Iterator[Publish]:
    """A registry with one package, ``demo``; returns the files of a project that wants it."""
    answers: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answers.get(self.path)
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        npm_config(url)

        def add(scripts: dict[str, str]) -> dict[str, bytes]:
            about = {"name": "demo", "version": "1.0.0", "scripts": scripts, "bin": {"demo": "index.js"}}
            archive = packed({"package.json": json.dumps(about), "index.js": "#!/usr/bin/env node\n"})
            integrity = "sha512-" + base64.b64encode(hashlib.sha512(archive).digest()).decode()
            about["dist"] = {"tarball": f"{url}/demo.tgz", "integrity": integrity}
            answers["/demo"] = json.dumps(
                {"name": "demo", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": about}}
            ).encode()
            answers["/demo.tgz"] = archive
            return project(integrity)

        yield add
        server.shutdown()
        thread.join()


def packed(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def project(integrity: str) -> dict[str, bytes]:
    wanted = {"name": "project", "version": "1.0.0", "dependencies": {"demo": "1.0.0"}}
    packages = {
        "": wanted,
        "node_modules/demo": {"version": "1.0.0", "integrity": integrity, "hasInstallScript": True},
    }
    lock = {
        "name": "project",
        "version": "1.0.0",
        "lockfileVersion": 3,
        "requires": True,
        "packages": packages,
    }
    return {"package.json": json.dumps(wanted).encode(), "package-lock.json": json.dumps(lock).encode()}


def test_every_package_is_pinned_and_hashed_and_no_registry_is_named() -> None:
    files = requirements()
    wanted = json.loads(files["package.json"])["dependencies"]
    lock = json.loads(files["package-lock.json"])
    packages = {name: package for name, package in lock["packages"].items() if name}

    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())
    assert {f"node_modules/{name}" for name in wanted} <= packages.keys()
    for name, package in packages.items():
        assert package["integrity"].startswith("sha512-"), name
        assert "resolved" not in package, name


@needs_npm
def test_the_packages_lie_over_usr() -> None:
    cache = LayerCache(default_cache_dir() / "templates")
    trees = ensure_node_modules(cache, print)

    [usr] = own_tools(trees, "/usr")
    assert own_tools(trees, "/bin") == ()
    modules = usr / NODE_MODULES.removeprefix("/usr/")
    assert (modules / "sucrase" / "package.json").is_file()
    assert not (modules / ".package-lock.json").exists()
    for path in usr.rglob("*"):
        assert path.is_symlink() or path.stat().st_mode & stat.S_IROTH, path

    said: list[str] = []
    assert ensure_node_modules(cache, said.append) == trees
    assert said == []


@needs_npm
def test_no_code_of_a_package_runs(publish: Publish, tmp_path: Path, lock: int) -> None:
    mark = tmp_path / "ran"
    names = ("preinstall", "install", "postinstall", "prepare")
    files = publish(dict.fromkeys(names, f"touch '{mark}'"))

    install(tmp_path, files, lock, print)

    modules = tmp_path / "tree" / NODE_MODULES[1:]
    assert (modules / "demo" / "index.js").is_file()
    assert [path.name for path in modules.iterdir()] == ["demo"]
    assert not mark.exists()


@needs_npm
def test_a_package_with_another_hash_is_refused(publish: Publish, tmp_path: Path, lock: int) -> None:
    publish({})
    other = "sha512-" + base64.b64encode(bytes(64)).decode()

    with pytest.raises(TemplateError, match="EINTEGRITY"):
        install(tmp_path, project(other), lock, print)


@needs_npm
def test_a_registry_out_of_reach_is_told_and_tried_again(
    cache: LayerCache, npm_config: Callable[[str], None]
) -> None:
    npm_config("http://127.0.0.1:1")
    for _ in range(2):  # the second time just as well: nothing is kept of a failure
        said: list[str] = []
        assert ensure_node_modules(cache, said.append) == ()
        assert re.fullmatch(r"JavaScript cells are not available: .*ECONNREFUSED.*", said[-1])
    assert not (cache.root / "node").exists()
    assert list((cache.root / "building").iterdir()) == []


def test_without_npm_it_is_told(cache: LayerCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "node").symlink_to(str(shutil.which("node")))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    said: list[str] = []

    assert ensure_node_modules(cache, said.append) == ()
    assert re.search("JavaScript cells are not available: there is no npm", said[-1])


def test_without_node_nothing_is_done(
    cache: LayerCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[str] = []

    assert ensure_node_modules(cache, said.append) == ()
    assert said == []
