"""What runsc is told: the container that it is to make, and the command lines."""

import ast
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from ringfence.engine.gvisor import bundle, sandbox
from ringfence.engine.gvisor.python import HostPython

_NOT_NEEDED = {"CAP_SYS_PTRACE", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_MKNOD", "CAP_BPF", "CAP_SYS_MODULE"}


@pytest.fixture
def python() -> HostPython:
    return HostPython("/python/bin/python3", ("/code/0", "/usr/lib/python3"), (), ())


def test_the_container_has_no_power_that_it_does_not_need(python: HostPython) -> None:
    config = bundle.config(python, "sandbox", 1 << 20)
    powers = config["process"]["capabilities"]
    assert not _NOT_NEEDED & {name for names in powers.values() for name in names}
    assert "inheritable" not in powers
    assert config["process"]["noNewPrivileges"] is True
    kinds = {namespace["type"] for namespace in config["linux"]["namespaces"]}
    assert kinds == {"pid", "network", "ipc", "uts", "mount"}


def test_nothing_of_the_hosts_environment_is_in_it(
    python: HostPython, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_HOST", "word-that-is-looked-for")
    text = json.dumps(bundle.config(python, "sandbox", 1 << 20)) + bundle.boot_program(python, {"env": {}})
    assert "word-that-is-looked-for" not in text


def test_shared_memory_has_its_size(python: HostPython) -> None:
    (shm,) = [one for one in bundle.config(python, "s", 77)["mounts"] if one["destination"].endswith("/shm")]
    assert "size=77" in shm["options"]


@pytest.mark.parametrize("text", ["plain", 'it\'s "quoted"', "\\'); import os #", "new\nline", "\u2028ü\0"])
def test_an_order_is_passed_as_it_is(python: HostPython, text: str) -> None:
    order = {"python": text, "modules": [text], "env": {text: text}}
    tree = ast.parse(bundle.boot_program(python, order))
    assert [type(node).__name__ for node in tree.body] == ["Import", "Assign", "ImportFrom", "Expr"]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    (argument,) = calls[-1].args
    assert json.loads(ast.literal_eval(argument)) == order


def _gvisor(**more: Any) -> dict[str, Any]:
    return {"platform": "ptrace", "flags": ["network", "ignore-cgroups"], **more}


def test_runsc_gets_only_the_options_that_it_knows() -> None:
    line = sandbox.command(_gvisor(), "run", "sandbox")
    assert line[0] == "/runsc"
    assert "--network=none" in line
    assert "--ignore-cgroups" in line
    assert not [option for option in line if "overlay2" in option or "host-uds" in option]
    assert line[-2:] == ["run", "sandbox"]


def test_an_interpreter_in_a_home_has_a_neutral_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Path(os.path.realpath(tmp_path)) / "home" / "someone" / "python"
    for directory in ("bin", "lib", "own/packages"):
        (home.parent / "code" if directory.startswith("own") else home).joinpath(directory).mkdir(
            parents=True
        )
    program = home / "bin" / "python3"
    program.touch()
    monkeypatch.setattr(sys, "base_prefix", str(home))
    monkeypatch.setattr(sys, "_base_executable", str(program), raising=False)
    missing = str(tmp_path / "missing")
    own = str(home.parent / "code" / "own" / "packages")
    monkeypatch.setattr(sys, "path", [str(home / "lib"), own, missing])
    python = HostPython.of_this_process()
    assert python.executable == "/python/bin/python3"
    assert python.search == ("/python/lib", "/code/0")
    assert (str(home), "/python") in python.binds
    assert (own, "/code/0") in python.binds
    assert python.env == {"LD_LIBRARY_PATH": "/python/lib"}
    assert "someone" not in json.dumps(bundle.config(python, "sandbox", 1))


def test_the_systems_own_interpreter_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    monkeypatch.setattr(sys, "_base_executable", "/usr/bin/python3", raising=False)
    monkeypatch.setattr(sys, "path", ["/usr/lib"])
    python = HostPython.of_this_process()
    assert python.executable.startswith("/usr/bin/")
    assert python.search == (os.path.realpath("/usr/lib"),)
    assert python.env == {}
