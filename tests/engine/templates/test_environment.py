"""What the builder of `/usr/local` makes of wheels, and that it runs none of their code."""

import json
import os
import py_compile
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ringfence.core.errors import TemplateError
from ringfence.engine.templates.environment import build_environment, rewrite_shebang, site_packages
from ringfence.engine.templates.interpreter import Interpreter

WriteWheel = Callable[[str, str, dict[str, str]], str]
PYTHON = b"#!/usr/local/bin/python3"


@pytest.fixture
def build(tmp_path: Path, interpreter: Interpreter, lock: int) -> Callable[[str], Path]:
    def run(requirements: str) -> Path:
        work = tmp_path / "work"
        work.mkdir()
        build_environment(work, requirements, interpreter, lock, lambda _: None)
        return work

    return run


def test_a_prefix_that_works_at_usr_local(
    write_wheel: WriteWheel, build: Callable[[str], Path], interpreter: Interpreter
) -> None:
    entry = {"demo-1.0.dist-info/entry_points.txt": "[console_scripts]\ndemo = demo:main\n"}
    requirement = write_wheel("demo", "1.0", {"demo/__init__.py": "def main(): ...\n", **entry})

    work = build(requirement)

    tree = work / "tree"
    assert json.loads((work / "packages.json").read_text()) == {"demo": "1.0"}
    assert (tree / "bin" / "demo").read_bytes().startswith(PYTHON + b"\n")
    assert os.readlink(tree / "bin" / "python3") == interpreter.inside
    assert os.readlink(tree / "bin" / "python") == "python3"
    assert f"home = {os.path.dirname(interpreter.inside)}\n" in (tree / "pyvenv.cfg").read_text()
    assert (tree / site_packages(interpreter) / "demo" / "__init__.py").is_file()
    assert not (tree / ".lock").exists()


def test_everybody_may_add_packages_and_root_gives_them_to_user(
    write_wheel: WriteWheel, build: Callable[[str], Path]
) -> None:
    tree = build(write_wheel("demo", "1.0", {"demo/__init__.py": ""})) / "tree"

    owner = 1000 if os.geteuid() == 0 else os.geteuid()
    for path in (tree, *tree.rglob("*")):
        status = path.lstat()
        assert status.st_uid == owner, path
        if stat.S_ISDIR(status.st_mode):
            assert stat.S_IMODE(status.st_mode) == 0o777, path
        elif stat.S_ISREG(status.st_mode):
            assert status.st_mode & stat.S_IROTH, path


def test_no_code_of_a_wheel_runs(
    write_wheel: WriteWheel, build: Callable[[str], Path], tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    attack = f"import os; open({str(mark)!r}, 'a').close()"
    requirement = write_wheel(
        "hostile",
        "1.0",
        {
            "hostile.pth": f"{attack}\n",
            "hostile/__init__.py": f"{attack}\n",
            "sitecustomize.py": f"{attack}\n",
            "usercustomize.py": f"{attack}\n",
            "encodings/__init__.py": f"{attack}\n",
            "hostile-1.0.data/scripts/hostile": f"#!python\n{attack}\n",
        },
    )

    work = build(requirement)

    assert not mark.exists()
    assert list((work / "tree").rglob("hostile.pth")) and list((work / "tree").rglob("hostile/__init__.py"))


def test_byte_code_is_made_and_names_the_place_inside(
    write_wheel: WriteWheel, build: Callable[[str], Path], interpreter: Interpreter, tmp_path: Path
) -> None:
    files = {"demo/__init__.py": "x = 1\n", "demo/broken.py": "print 'for Python 2'\n"}
    tree = build(write_wheel("demo", "1.0", files)) / "tree"

    inside = f"/usr/local/{site_packages(interpreter)}/demo/__init__.py"
    (compiled,) = tree.rglob("demo/__pycache__/*.pyc")
    assert inside.encode() in compiled.read_bytes()
    assert str(tmp_path).encode() not in compiled.read_bytes()
    if interpreter.version == ".".join(map(str, sys.version_info[:3])):
        source = tree / site_packages(interpreter) / "demo" / "__init__.py"
        expected = py_compile.compile(str(source), str(tmp_path / "same.pyc"), dfile=inside, doraise=True)
        assert expected is not None
        assert compiled.read_bytes() == Path(expected).read_bytes()


def test_a_package_that_would_have_to_be_built_is_refused(
    write_wheel: WriteWheel, build: Callable[[str], Path], tmp_path: Path
) -> None:
    write_wheel("demo", "1.0", {"demo/__init__.py": ""})
    (tmp_path / "wheels" / "sdistonly-1.0.tar.gz").write_bytes(b"never opened")

    with pytest.raises(TemplateError, match="sdistonly"):
        build(f"sdistonly==1.0 --hash=sha256:{'0' * 64}\n")


def test_a_wheel_with_another_hash_is_refused(write_wheel: WriteWheel, build: Callable[[str], Path]) -> None:
    requirement = write_wheel("demo", "1.0", {"demo/__init__.py": ""})
    write_wheel("demo", "1.0", {"demo/__init__.py": "changed = True\n"})

    with pytest.raises(TemplateError, match=r"(?i)hash"):
        build(requirement)


def test_a_requirement_without_a_hash_is_refused(
    write_wheel: WriteWheel, build: Callable[[str], Path]
) -> None:
    write_wheel("demo", "1.0", {"demo/__init__.py": ""})

    with pytest.raises(TemplateError, match=r"(?i)hash"):
        build("demo==1.0\n")


def test_shebangs() -> None:
    outside = b"/home/a/py/bin/python3.11"
    assert rewrite_shebang(b"#!" + outside + b"\nbody\n", outside) == PYTHON + b"\nbody\n"
    long_form = b"#!/bin/sh\n'''exec' '" + outside + b"' \"$0\" \"$@\"\n' '''\nbody\nmore"
    assert rewrite_shebang(long_form, outside) == PYTHON + b"\nbody\nmore"
    assert rewrite_shebang(b"#!/bin/sh\necho\n", outside) is None
    assert rewrite_shebang(b"\x7fELF" + outside, outside) is None
    assert rewrite_shebang(b"", outside) is None
