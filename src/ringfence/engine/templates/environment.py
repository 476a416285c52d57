"""The template's Python packages: a virtual environment whose prefix is ``/usr/local`` inside a sandbox.

Everything comes from wheels with known hashes, which are unpacked and nothing more. No code of a package
ever runs on the
host: nothing is built, the environment's own interpreter is never started here (a ``.pth`` file would be
    executed), and byte code is compiled by an interpreter that does not look at the environment.
"""

import json
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import uv

from ringfence.engine.templates import bytecode
from ringfence.engine.templates.cache import Progress
from ringfence.engine.templates.children import run
from ringfence.engine.templates.indexes import user_home, uv_environment
from ringfence.engine.templates.interpreter import Interpreter

INSIDE_PREFIX = "/usr/local"
USER_ID = 1000
_PYTHON = f"{INSIDE_PREFIX}/bin/python3"
_OPEN_DIRECTORIES = ("bin", "etc", "games", "include", "lib", "sbin", "share", "src")


def build_environment(
    work: Path, requirements: str, interpreter: Interpreter, lock: int, progress: Progress
) -> None:
    """Fill ``work/tree`` with the environment and ``work/packages.json`` with names and versions.

    Raises `TemplateError`, with the end of uv's output, when a package cannot be had.
    """
    tree = work / "tree"
    tree.mkdir(mode=0o755)
    for name in _OPEN_DIRECTORIES:
        (tree / name).mkdir(mode=0o755)
    (tree / "lib64").symlink_to("lib")
    (tree / "man").symlink_to("share/man")
    _install(work, tree, requirements, interpreter, lock, progress)
    (tree / ".lock").unlink(missing_ok=True)  # uv's own
    _rewrite_scripts(tree / "bin", interpreter)
    _write_environment_files(tree, interpreter)
    compile_tree(tree / "lib", f"{INSIDE_PREFIX}/lib", interpreter, lock, progress)
    (work / "packages.json").write_text(json.dumps(_packages(tree, interpreter)), encoding="utf-8")
    _hand_over(tree)


def site_packages(interpreter: Interpreter) -> str:
    """Where the packages are, relative to the prefix."""
    return f"lib/python{interpreter.short_version}/site-packages"


def read_packages(layer: Path) -> dict[str, str]:
    """Name to version of what `build_environment` installed in a finished layer."""
    packages: dict[str, str] = json.loads((layer / "packages.json").read_text(encoding="utf-8"))
    return packages


def compile_tree(tree: Path, inside: str, interpreter: Interpreter, lock: int, progress: Progress) -> None:
    """Compile the source in `tree`, which will be mounted at `inside`, to byte code. None of it is
    imported.
    """
    command = [str(interpreter.executable), "-I", "-S", bytecode.__file__, str(tree), inside, str(_jobs())]
    run(
        command,
        what="compiling the template's packages",
        cwd=Path("/"),
        env={"PATH": os.defpath, "LANG": "C.UTF-8"},
        lock=lock,
        on_line=lambda line: progress("compiled {} of {} files".format(*line.split())),
        on_quiet=lambda seconds: progress(f"still compiling ({seconds:.0f} s)"),
    )


def _jobs() -> int:
    return max(1, min(8, len(os.sched_getaffinity(0))))


def _install(
    work: Path, tree: Path, requirements: str, interpreter: Interpreter, lock: int, progress: Progress
) -> None:
    listing = work / "requirements.txt"
    listing.write_text(requirements, encoding="utf-8")
    command = [
        uv.find_uv_bin(),
        "pip",
        "install",
        "--prefix",
        str(tree),
        "--python",
        str(interpreter.executable),
    ]
    # --only-binary: no build backend of a package runs. --link-mode copy: a layer must not share files with
    # uv's cache.
    command += [
        "--only-binary",
        ":all:",
        "--require-hashes",
        "--link-mode",
        "copy",
        "--break-system-packages",
    ]
    command += ["--no-compile-bytecode", "--requirement", str(listing)]
    run(
        command,
        what="installing the template's packages",
        cwd=work,
        env=uv_environment(os.environ, user_home()),
        lock=lock,
        on_line=_uv_lines(progress),
        on_quiet=lambda seconds: progress(f"still installing packages ({seconds:.0f} s)"),
    )


def _uv_lines(progress: Progress) -> Callable[[str], None]:
    """Pass on what uv says, without the list of every package installed."""

    def on_line(line: str) -> None:
        if not line.startswith(("+ ", "~ ", "Using ")):
            progress(f"uv: {line}")

    return on_line


def _rewrite_scripts(directory: Path, interpreter: Interpreter) -> None:
    """Make the scripts in `directory` start with the interpreter's path inside."""
    outside = str(interpreter.executable).encode()
    for path in directory.iterdir():
        if path.is_symlink() or not path.is_file():
            continue
        content = path.read_bytes()
        if rewritten := rewrite_shebang(content, outside):
            path.write_bytes(rewritten)


def rewrite_shebang(content: bytes, outside: bytes) -> bytes | None:
    """`content` with its first line(s) changed to run the sandbox's Python; None where they do not name
    `outside`.

    Installers write ``#!<python>``, or three lines of shell where that line would be too long or has a
    space in it.
    """
    lines = content.split(b"\n", 3)
    if lines[0].startswith(b"#!") and lines[0][2:].strip() == outside:
        return b"\n".join([b"#!" + _PYTHON.encode(), *lines[1:]])
    if (
        lines[0] == b"#!/bin/sh"
        and len(lines) == 4
        and lines[1].startswith(b"'''exec'")
        and outside in lines[1]
    ):
        return b"#!" + _PYTHON.encode() + b"\n" + lines[3]
    return None


def _write_environment_files(tree: Path, interpreter: Interpreter) -> None:
    home = os.path.dirname(interpreter.inside)  # noqa: PTH120 (a path inside a sandbox)
    settings = f"home = {home}\ninclude-system-site-packages = false\nversion = {interpreter.version}\n"
    (tree / "pyvenv.cfg").write_text(settings, encoding="utf-8")
    (tree / "pyvenv.cfg").chmod(0o644)
    binaries = tree / "bin"
    (binaries / "python3").symlink_to(interpreter.inside)
    for name in ("python", f"python{interpreter.short_version}"):
        (binaries / name).symlink_to("python3")


def _packages(tree: Path, interpreter: Interpreter) -> dict[str, str]:
    found = metadata.distributions(path=[str(tree / site_packages(interpreter))])
    return dict(sorted((distribution.name, distribution.version) for distribution in found))


def _hand_over(tree: Path) -> None:
    """Let the sandbox's `user` install and remove packages, as E2B's can: it owns ``/usr/local``, which is
    mode 777.
    """
    as_root = os.geteuid() == 0
    for directory, names, files in os.walk(tree):
        Path(directory).chmod(0o777)  # inside a private cache directory
        if as_root:
            for name in (*names, *files):
                os.lchown(os.path.join(directory, name), USER_ID, USER_ID)  # noqa: PTH118
    if as_root:
        os.lchown(tree, USER_ID, USER_ID)
