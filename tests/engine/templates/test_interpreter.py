"""The interpreter a template is made for, and the copy of it that can be mounted anywhere."""

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ringfence.core.errors import TemplateError
from ringfence.engine.templates.interpreter import Interpreter, copy_interpreter, find_interpreter


def script(path: Path, answer: str) -> Path:
    path.write_text(f"#!/bin/sh\necho '{answer}'\n")
    path.chmod(0o755)
    return path


def test_the_running_interpreter_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RINGFENCE_TEMPLATE_PYTHON", raising=False)
    found = find_interpreter()

    assert found.version == sys.version.split()[0].rstrip("+")
    assert found.prefix == Path(sys.base_prefix).resolve()
    assert found.executable.is_relative_to(found.prefix)


def test_the_variable_chooses_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGFENCE_TEMPLATE_PYTHON", str(tmp_path / "missing"))
    with pytest.raises(TemplateError, match="missing does not work as a Python interpreter"):
        find_interpreter()


def test_other_implementations_and_old_versions_are_refused(tmp_path: Path) -> None:
    rest = '"executable": "/x", "prefix": "/", "soabi": "", "library": "", "abiflags": ""'
    pypy = script(tmp_path / "pypy", f'{{"implementation": "PyPy", "version": "3.11.1", {rest}}}')
    old = script(tmp_path / "old", f'{{"implementation": "CPython", "version": "3.9.1", {rest}}}')

    with pytest.raises(TemplateError, match="is PyPy"):
        find_interpreter(pypy)
    with pytest.raises(TemplateError, match=r"3\.11 or newer"):
        find_interpreter(old)
    with pytest.raises(TemplateError, match="does not work"):
        find_interpreter(script(tmp_path / "chatter", "hello"))


def test_the_systems_python_is_shown_in_place_and_others_are_not() -> None:
    system = Interpreter(Path("/usr/bin/python3.11"), Path("/usr"), "3.11.2", "", "")
    docker = Interpreter(Path("/usr/local/bin/python3.11"), Path("/usr/local"), "3.11.2", "", "")

    assert system.in_place and system.inside == "/usr/bin/python3.11"
    assert not docker.in_place and docker.inside == "/opt/python/bin/python3.11"


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Interpreter, Path]:
    interpreter = find_interpreter()
    if interpreter.in_place:
        pytest.skip("the system's interpreter is not copied")
    root = tmp_path_factory.mktemp("python") / "root"
    copy_interpreter(interpreter, root)
    return interpreter, root / "opt" / "python"


def test_a_copy_has_the_standard_library_and_nobodys_packages(copied: tuple[Interpreter, Path]) -> None:
    interpreter, copy = copied
    library = copy / "lib" / f"python{interpreter.short_version}"
    assert (library / "os.py").is_file() and (library / "lib-dynload").is_dir()
    assert not list(copy.rglob("site-packages")) and not list(copy.rglob("__pycache__"))
    names = {path.name for path in (copy / "bin").iterdir()}
    assert names == {"python", "python3", f"python{interpreter.short_version}"}


def test_a_copy_is_readable_by_everybody(copied: tuple[Interpreter, Path]) -> None:
    for path in copied[1].rglob("*"):
        if not path.is_symlink():
            assert stat.S_IMODE(path.stat().st_mode) in (0o644, 0o755), path


def test_a_copy_does_not_mention_where_it_came_from(copied: tuple[Interpreter, Path]) -> None:
    """Except as a whole string in a binary, which must stay: a linker may keep other strings in its tail."""
    interpreter, copy = copied
    below = f"{interpreter.prefix}/".encode()
    for path in copy.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert below not in path.read_bytes(), path


def test_a_copy_runs(copied: tuple[Interpreter, Path]) -> None:
    """Here with a library path, since it is not mounted at its place."""
    interpreter, copy = copied
    code = "import platform, ssl, sqlite3, ctypes; print(platform.python_version())"
    answer = subprocess.run(
        [copy / "bin" / "python3", "-I", "-c", code],
        env={"LD_LIBRARY_PATH": str(copy / "lib"), "PATH": os.defpath},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == interpreter.version


def test_an_interpreter_that_cannot_be_moved_is_named(tmp_path: Path) -> None:
    prefix = tmp_path / "py"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "python3.11").write_bytes(b"\x7fELF\0libpython3.11.so.1.0\0")
    interpreter = Interpreter(prefix / "bin" / "python3.11", prefix, "3.11.2", "", "libpython3.11.so.1.0")

    with pytest.raises(TemplateError, match="only where it was installed"):
        copy_interpreter(interpreter, tmp_path / "root")


def test_a_key_follows_the_build(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "python3.11"
    program.parent.mkdir()
    program.write_bytes(b"one")
    interpreter = Interpreter(program, tmp_path, "3.11.2", "abi", "")
    before = interpreter.key()

    assert interpreter.key() == before
    assert replace(interpreter, soabi="other").key() != before
    program.write_bytes(b"another")
    assert interpreter.key() != before
