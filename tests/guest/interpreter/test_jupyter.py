"""Kernels behind the Jupyter protocol: ipykernel under another name, and R when it is installed."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from e2b.exceptions import SandboxException

_BROKEN = {"argv": ["sh", "-c", "echo what is wrong >&2; exit 3"], "language": "broken"}


@pytest.fixture
def server(new_server, config, home, kernel_python, monkeypatch):
    """The API, with kernelspecs in the user's home."""
    monkeypatch.setattr("ringfence.guest.interpreter.pool.kernel_user", _user_at(home))
    kernels = home / ".local/share/jupyter/kernels"
    argv = [kernel_python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    _add(kernels / "other", {"argv": argv, "language": "python", "display_name": "Other Python"})
    _add(kernels / "message", {"argv": argv, "language": "python", "interrupt_mode": "message"})
    _add(kernels / "broken", _BROKEN)
    _add(kernels / "missing", {"argv": ["/no/such/program"], "language": "missing"})
    (kernels / "nothing").mkdir()
    return new_server(config)


def _add(directory: Path, spec: dict) -> None:
    directory.mkdir(parents=True)
    (directory / "kernel.json").write_text(json.dumps(spec))


def _user_at(home: Path) -> Callable:
    from ringfence.guest.interpreter.identity import User, kernel_user

    def user(config):
        found = kernel_user(config)
        return User(found.name, found.uid, found.gid, found.groups, str(home))

    return user


@pytest.fixture
def run(server, kernel_python):
    """Run a cell in the default context of a language."""
    if subprocess.run([kernel_python, "-c", "import ipykernel"], capture_output=True).returncode:
        pytest.skip("there is no ipykernel")
    sandbox = server.sandbox()
    return lambda code, language="other", **options: sandbox.run_code(code, language=language, **options)


def execute(server, code: str, **fields: object) -> list[dict]:
    with httpx.Client(timeout=60) as client:
        response = client.post(f"{server.url}/execute", json={"code": code, "language": "other", **fields})
    return [json.loads(line) for line in response.text.split("\n") if line]


def test_state_output_and_results(run, home):
    execution = run("import sys; x = 1; print('out'); print('err', file=sys.stderr); 'text'")
    assert (execution.text, execution.execution_count, execution.error) == ("text", 1, None)
    assert ("".join(execution.logs.stdout), "".join(execution.logs.stderr)) == ("out\n", "err\n")
    assert run("x += 1; x").text == "2"
    assert run("import os; os.getcwd()").text == str(home)
    assert run("os.environ['FROM_SANDBOX']").text == "yes"
    code = "from IPython.display import HTML, display; display(HTML('<b>')); HTML('<i>')"
    first, second = run(code).results
    assert (first.html, first.is_main_result) == ("<b>", False)
    assert (second.html, second.is_main_result) == ("<i>", True)
    assert run("!echo by the shell").logs.stdout == ["by the shell\r\n"]


def test_updates_are_shown_once(run):
    code = "h = display(1, display_id=True)\nfor i in range(5): h.update(i)"
    assert [result.text for result in run(code).results] == ["1", "4"]


def test_errors(run):
    error = run("def f(): 1/0\nf()").error
    assert (error.name, error.value) == ("ZeroDivisionError", "division by zero")
    assert "\x1b" not in error.traceback
    assert "f()" in error.traceback
    assert "input" in run("input()").error.value
    assert run("1").execution_count == 3


def test_environment_of_one_cell(run):
    run("import os")
    value = "a \"'\\ \n é😀 ${x}"
    assert run("[os.environ['ONCE'], os.environ['HOME']]", envs={"ONCE": value, "HOME": "/h"}).text == str(
        [value, "/h"]
    )
    assert run("'ONCE' in os.environ, os.environ['HOME'] == '/h'").text == "(False, False)"


@pytest.mark.parametrize("language", ["other", "message"])
@pytest.mark.parametrize("code", ["import time; time.sleep(60)", "while True: pass", "!sleep 60"])
def test_time_limit_keeps_the_variables(server, run, language, code):
    run("kept = 1", language)
    events = execute(server, code, language=language, timeout=0.5)
    assert [event["name"] for event in events if event["type"] == "error"] == ["TimeoutError"]
    assert run("kept", language).text == "1"


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import os; os._exit(3)", "exited with status 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "SIGTERM"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    ],
)
def test_death_is_told(run, code, how):
    error = run(code).error
    assert error.name == "KernelDied"
    assert how in error.value
    assert run("1").text == "1"


def test_contexts(server, run, tmp_path):
    sandbox = server.sandbox()
    run("x = 1")
    context = sandbox.create_code_context(language="Other Python", cwd=str(tmp_path))
    assert context.language == "other python"
    assert sandbox.run_code("x", context=context).error.name == "NameError"
    assert sandbox.run_code("import os; os.getcwd()", context=context).text == str(tmp_path)
    sandbox.restart_code_context(context)
    assert sandbox.run_code("os", context=context).error.name == "NameError"
    sandbox.remove_code_context(context)
    assert run("x").text == "1"


def test_kernels_that_do_not_start(server):
    sandbox = server.sandbox()
    with pytest.raises(SandboxException, match=r"500.*what is wrong"):
        sandbox.create_code_context(language="broken")
    with pytest.raises(SandboxException, match=r"500.*'/no/such/program', which is not installed"):
        sandbox.run_code("1", language="missing")
    with pytest.raises(
        SandboxException, match=r"500.*no kernel for the language 'nothing'.*bash.*other.*python"
    ):
        sandbox.run_code("1", language="nothing")


@pytest.fixture
def r(server):
    """Run a cell of R."""
    if not shutil.which("R") or not Path("/usr/share/jupyter/kernels/ir").exists():
        pytest.skip("there is no R with IRkernel on this machine")
    sandbox = server.sandbox()
    return lambda code, **options: sandbox.run_code(code, language="r", **options)


def test_r(server, r):
    execution = r("x <- c(1, 2, 3); cat('out\\n'); message('err'); mean(x)")
    assert ([result.text for result in execution.results], execution.error) == (["[1] 2"], None)
    assert "".join(execution.logs.stdout) == "out\n"
    assert "".join(execution.logs.stderr).strip() == "err"
    assert r("system('echo direct')").logs.stdout == ["direct\n"]
    assert r("data.frame(a = x)").results[0].html
    error = r("stop('wrong')").error
    assert "wrong" in error.value
    value = "a \"'\\ \n é😀 \\u0022"
    assert r("cat(Sys.getenv('ONCE'), Sys.getenv('FROM_SANDBOX'))", envs={"ONCE": value}).logs.stdout == [
        f"{value} yes"
    ]
    assert r("cat(Sys.getenv('ONCE', unset = 'none'))").logs.stdout == ["none"]
    events = execute(server, "Sys.sleep(60)", language="r", timeout=0.5)
    assert [event["name"] for event in events if event["type"] == "error"] == ["TimeoutError"]
    assert r("sum(x)").results[0].text == "[1] 6"
    assert "SIGTERM" in r("tools::pskill(Sys.getpid()); Sys.sleep(60)").error.value
