"""Finding out which runsc there is, what it can, and on which platform it runs here: with a program of ours
in its place.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ringfence.core.errors import TierUnavailableError
from ringfence.engine.gvisor import runsc

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a program in the place of runsc that runs on `platforms`, and writes down how it is called."""

    def put(*platforms: str, version: str = "release-1") -> Path:
        program = tmp_path / "runsc"
        program.write_text(
            "#!/bin/sh\n"
            f'echo "$@" >> {tmp_path}/calls\n'
            'case "$*" in\n'
            f'*--version*) echo "runsc version {version}";;\n'
            '*flags*) printf "  -network value\\n  -overlay2 value\\n";;\n'
            + "".join(f"*--platform={name}*) exit 0;;\n" for name in platforms)
            + '*) echo "no such platform" >&2; exit 1;;\n'
            "esac\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("RINGFENCE_RUNSC", str(program))
        return program

    return put


async def test_the_first_platform_that_works_is_taken(install: Install, tmp_path: Path) -> None:
    program = install("ptrace")
    found = await runsc.detect("auto", tmp_path)
    assert found == runsc.Runtime(str(program), "release-1", "ptrace", ("network", "overlay2"))
    assert "systrap" in (tmp_path / "calls").read_text()


async def test_the_platform_that_was_asked_for_is_taken(install: Install, tmp_path: Path) -> None:
    install("systrap", "ptrace")
    assert (await runsc.detect("ptrace", tmp_path)).platform == "ptrace"


async def test_what_was_found_out_is_kept_for_the_same_program(install: Install, tmp_path: Path) -> None:
    program = install("systrap")
    first = await runsc.detect("auto", tmp_path)
    calls = (tmp_path / "calls").read_text()
    assert await runsc.detect("auto", tmp_path) == first
    assert (tmp_path / "calls").read_text() == calls
    install("systrap", version="release-2")
    os.utime(program, (1, 1))
    assert (await runsc.detect("auto", tmp_path)).version == "release-2"


@pytest.mark.parametrize("kept", ["", "[]", "{}", json.dumps({"key": 1, "runtime": {}})])
async def test_a_spoiled_cache_does_not_matter(install: Install, tmp_path: Path, kept: str) -> None:
    install("systrap")
    (tmp_path / "gvisor.json").write_text(kept)
    assert (await runsc.detect("auto", tmp_path)).platform == "systrap"


async def test_one_that_runs_nowhere_is_refused_with_the_reason(install: Install, tmp_path: Path) -> None:
    install()
    with pytest.raises(TierUnavailableError, match=r"systrap: no such platform; ptrace: .*RINGFENCE_GVISOR"):
        await runsc.detect("auto", tmp_path)
    assert not (tmp_path / "gvisor.json").exists()


async def test_a_program_that_is_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGFENCE_RUNSC", "/bin/true")
    with pytest.raises(TierUnavailableError, match="does not run"):
        await runsc.detect("auto", tmp_path)


def test_none_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGFENCE_RUNSC", "/no/runsc")
    with pytest.raises(TierUnavailableError, match=r"/no/runsc .*apt install runsc"):
        runsc.find()
