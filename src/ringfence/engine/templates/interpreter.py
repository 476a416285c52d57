"""The Python a template is made for: found, described, and copied to a neutral place when it lives in
somebody's home.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ringfence.core.errors import TemplateError
from ringfence.engine.templates.cache import digest

INSIDE_PREFIX = "/opt/python"
"""Where a copied interpreter is mounted."""

_PROBE = """
import json, os, platform, sys, sysconfig
json.dump({
    "implementation": platform.python_implementation(),
    "version": platform.python_version(),
    "executable": os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable),
    "prefix": os.path.realpath(sys.base_prefix),
    "soabi": sysconfig.get_config_var("SOABI") or "",
    "library": sysconfig.get_config_var("INSTSONAME") or "",
    "abiflags": sys.abiflags,
}, sys.stdout)
"""
_PROBE_TIMEOUT_S = 30.0
_OLDEST = (3, 11)

# What of an interpreter's prefix is its own, and not somebody's installed programs. Libraries that
# standalone builds and conda put beside the interpreter (libpython, OpenSSL, Tcl/Tk) are needed by the
# standard library.
_OWN_PARTS = (
    "bin/python{short}",
    "lib*/*.so*",
    "lib*/python{short}{abi}",
    "lib/tcl*",
    "lib/tk*",
    "lib/itcl*",
    "lib/thread*",
    "include/python{short}{abi}",
    "openssl/lib*/*.so*",
)
_NOT_COPIED = shutil.ignore_patterns(
    "__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test", "lib*.a", "turtledemo"
)


@dataclass(frozen=True)
class Interpreter:
    """A CPython on this machine, as it says itself.

    executable: the real program, never a virtual environment's link to it.
    prefix: its installation prefix.
    library: file name of its shared library, or of its archive when it has none.
    """

    executable: Path
    prefix: Path
    version: str
    soabi: str
    library: str
    abiflags: str = ""

    @property
    def short_version(self) -> str:
        """For example ``3.11``."""
        return ".".join(self.version.split(".")[:2])

    @property
    def in_place(self) -> bool:
        """Whether a sandbox sees it at its own path, because it is part of ``/usr`` and not of
        ``/usr/local``.
        """
        return self.prefix.is_relative_to("/usr") and not self.prefix.is_relative_to("/usr/local")

    @property
    def inside(self) -> str:
        """Its path inside a sandbox."""
        return str(self.executable) if self.in_place else f"{INSIDE_PREFIX}/bin/python{self.short_version}"

    def key(self) -> str:
        """Changes when another build is installed in its place."""
        files = [
            self.executable,
            *(path for path in self.prefix.glob("lib*/libpython*") if not path.is_symlink()),
        ]
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(files)]
        return digest(self.version, self.soabi, self.prefix, *stats)


def find_interpreter(python: Path | None = None) -> Interpreter:
    """Describe `python`, else ``RINGFENCE_TEMPLATE_PYTHON``, else the interpreter that runs this.

    Raises `TemplateError` when it cannot be run, is not CPython, or is too old.
    """
    chosen = str(python or os.environ.get("RINGFENCE_TEMPLATE_PYTHON") or sys.executable)
    facts = _ask(chosen)
    version = facts["version"]
    if facts["implementation"] != "CPython":
        raise TemplateError(f"templates need CPython, and {chosen} is {facts['implementation']} {version}")
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        raise TemplateError(
            f"templates need Python 3.11 or newer, and {chosen} is {version}; "
            "set RINGFENCE_TEMPLATE_PYTHON to a newer one"
        )
    return Interpreter(
        executable=Path(facts["executable"]),
        prefix=Path(facts["prefix"]),
        version=version,
        soabi=facts["soabi"],
        library=facts["library"],
        abiflags=facts["abiflags"],
    )


def _ask(python: str) -> dict[str, str]:
    try:
        answer = subprocess.run(
            [python, "-I", "-S", "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_TIMEOUT_S,
            check=True,
        )
        facts: dict[str, str] = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise TemplateError(f"{python} does not work as a Python interpreter: {error}") from error
    return facts


def copy_interpreter(interpreter: Interpreter, root: Path) -> None:
    """Copy what is the interpreter's own to `root` + ``/opt/python``, with every mention of its old prefix
    replaced.

    Raises `TemplateError` when the program would not find its shared library there.
    """
    target = root / INSIDE_PREFIX.lstrip("/")
    for source in _own_parts(interpreter):
        destination = target / source.relative_to(interpreter.prefix)
        destination.parent.mkdir(parents=True, exist_ok=True)
        _copy(source, destination)
    program = target / "bin" / f"python{interpreter.short_version}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(interpreter.executable, program)
    for name in ("python3", "python"):
        (program.parent / name).symlink_to(program.name)
    for path in target.rglob("*"):
        if not path.is_symlink():
            _relocate(path, str(interpreter.prefix))
    _check_library(interpreter, program)


def _own_parts(interpreter: Interpreter) -> Iterator[Path]:
    for pattern in _OWN_PARTS:
        yield from interpreter.prefix.glob(
            pattern.format(short=interpreter.short_version, abi=interpreter.abiflags)
        )


def _copy(source: Path, destination: Path) -> None:
    if source.is_symlink():
        link = source.readlink()
        if not link.is_absolute():
            destination.symlink_to(link)
            return
    if source.is_dir():
        shutil.copytree(source, destination, symlinks=True, ignore=_NOT_COPIED, dirs_exist_ok=True)
    elif source.is_file():
        shutil.copy2(source, destination)


def _relocate(path: Path, prefix: str) -> None:
    """Let everybody read it, and replace `prefix` in a file by the new one.

    So the run-time search path of a shared libpython, and what ``sysconfig`` tells a compiler, stay right. In
    binary files the new prefix is padded with slashes to the same length, so that nothing moves, and only
    paths below the prefix are touched: linkers let short strings live in the tails of longer ones (``3.11.7``
    in ``…/versions/3.11.7``).
    """
    mode = path.stat().st_mode
    path.chmod(0o755 if path.is_dir() or mode & 0o100 else 0o644)
    content = path.read_bytes() if path.is_file() else b""
    old = prefix.encode()
    if old not in content:
        return
    new = INSIDE_PREFIX.encode()
    if b"\0" not in content:
        path.write_bytes(re.sub(re.escape(old) + rb"(?![\w.-])", new, content))
    elif len(old) >= len(new):
        path.write_bytes(content.replace(old + b"/", new + b"/" * (1 + len(old) - len(new))))


def _check_library(interpreter: Interpreter, program: Path) -> None:
    if ".so" not in interpreter.library:
        return
    content = program.read_bytes()
    if interpreter.library.encode() not in content:
        return  # built with a shared library but linked statically, as Debian's is
    if b"$ORIGIN/../lib" not in content and INSIDE_PREFIX.encode() not in content:
        raise TemplateError(
            f"{interpreter.executable} finds its {interpreter.library} only where it was installed; "
            "set RINGFENCE_TEMPLATE_PYTHON to another Python (the system's, or one installed by uv)"
        )
