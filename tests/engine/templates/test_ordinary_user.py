"""Building without privileges: done for real, by giving them up in a child when the tests run as root."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uv

import ringfence

WriteWheel = Callable[[str, str, dict[str, str]], str]
UID = 12345
PYTHON = Path("/usr/bin/python3")

SCRIPT = """
import email.parser, json, os, sys
from pathlib import Path
import uv
from ringfence.engine.templates.cache import LayerCache
from ringfence.engine.templates.environment import build_environment, read_packages
from ringfence.engine.templates.interpreter import find_interpreter
from ringfence.engine.templates.skeleton import plan_skeleton
home, requirement, python, uid = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
uv.find_uv_bin()  # reads files that an ordinary user may be unable to read, as email.parser does
if uid:
    os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
os.umask(0o077)
interpreter = find_interpreter(python)
cache = LayerCache(home / "cache")
def build(work, lock):
    build_environment(work, requirement, interpreter, lock, lambda _: None)
environment = cache.ensure("environment", "key", build, print)
plan = plan_skeleton("id", "base")
skeleton = cache.ensure("skeleton", plan.key(), lambda work, _: plan.write(work / "tree"), print)
made = {"environment": str(environment), "skeleton": str(skeleton), "packages": read_packages(environment)}
print(json.dumps(made))
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of the ordinary user's that it can reach."""
    path = Path(tempfile.mkdtemp(prefix="ringfence-test-"))
    if os.geteuid() == 0:
        os.chown(path, UID, UID)
    yield path
    shutil.rmtree(path)


def reachable(*paths: str) -> bool:
    """Whether the ordinary user can read all of `paths`."""
    if os.geteuid() != 0:
        return all(os.access(path, os.R_OK) for path in paths)
    test = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "test"]
    return bool(shutil.which("setpriv")) and all(
        subprocess.run([*test, "-r", path], check=False).returncode == 0 for path in paths
    )


def test_layers_built_without_privileges_are_whole(
    home: Path, write_wheel: WriteWheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path(ringfence.__file__).parent
    if not reachable(uv.find_uv_bin(), str(package / "core"), str(PYTHON)):
        pytest.skip("an ordinary user cannot reach this checkout")
    requirement = write_wheel("demo", "1.0", {"demo/__init__.py": ""})
    shutil.copytree(os.environ["UV_FIND_LINKS"], home / "wheels", copy_function=shutil.copyfile)
    monkeypatch.setenv("UV_FIND_LINKS", str(home / "wheels"))
    monkeypatch.setenv("UV_CACHE_DIR", str(home / "uv"))
    monkeypatch.setenv("HOME", str(home))
    uid = UID if os.geteuid() == 0 else os.geteuid()

    answer = subprocess.run(
        [
            sys.executable,
            "-c",
            SCRIPT,
            str(home),
            requirement,
            str(PYTHON),
            str(UID if os.geteuid() == 0 else 0),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=home,
    )

    assert answer.returncode == 0, answer.stderr
    made = json.loads(answer.stdout)
    assert made["packages"] == {"demo": "1.0"}
    for layer in ("environment", "skeleton"):
        tree = Path(made[layer]) / "tree"
        entries = list(tree.rglob("*"))
        assert len(entries) > 20
        assert {path.lstat().st_uid for path in entries} == {uid}
        unreadable = [path for path in entries if not path.is_symlink() and not path.stat().st_mode & 0o444]
        assert unreadable == []
