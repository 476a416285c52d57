"""Variables of one cell as code: whatever is in them stays text, and what was there before comes back."""

import os
import shutil
import subprocess

import pytest

from ringfence.guest.kernel.jupyter_env import around_cell, at_start

HOSTILE = "a'b\"c\\ \n\t${x} $(x) `x` \\u0022); é 😀 # // */"
ENV = {"NEW": HOSTILE, "OLD": "inside", "odd-name.x": "1"}


def test_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLD", "before")
    before, after = around_cell("python", ENV)
    exec(before, {})
    assert {name: os.environ[name] for name in ENV} == ENV
    exec(after, {})
    assert (os.environ.get("NEW"), os.environ["OLD"], "odd-name.x" in os.environ) == (None, "before", False)


@pytest.mark.skipif(shutil.which("Rscript") is None, reason="there is no R on this machine")
def test_r() -> None:
    before, after = around_cell("r", ENV)
    show = "cat(Sys.getenv(c('NEW', 'OLD', 'odd-name.x'), unset = 'none'), sep = '\\u0001'); cat('\\u0002')"
    said = subprocess.run(
        ["Rscript", "-e", ";".join([before, show, after, show])],
        env={**os.environ, "OLD": "before", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    inside, outside, _ = said.split("\x02")
    assert inside.split("\x01") == list(ENV.values())
    assert outside.split("\x01") == ["none", "before", "none"]


@pytest.mark.skipif(shutil.which("jshell") is None, reason="there is no jshell on this machine")
def test_java() -> None:
    before, after = around_cell("java", ENV)
    show = (
        "".join(f'System.out.print(System.getProperty("{name}") + "\\001");\n' for name in ENV)
        + 'System.out.print("\\002");\n'
    )
    said = subprocess.run(
        ["jshell", "-s", "-R-Dfile.encoding=UTF-8", "-R-Dstdout.encoding=UTF-8", "-"],
        input="\n".join([at_start("java", {"OLD": "before"}), before, show, after, show, "/exit"]),
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    inside, outside, _ = said.split("\x02")
    assert inside.split("\x01")[:-1] == list(ENV.values())
    assert outside.split("\x01")[:-1] == ["null", "before", "null"]


def test_a_language_without_a_way() -> None:
    assert around_cell("cobol", {}) == ("", "")
    with pytest.raises(ValueError, match="cobol"):
        around_cell("cobol", {"A": "1"})
