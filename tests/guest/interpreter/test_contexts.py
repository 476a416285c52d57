"""Contexts: made, listed, restarted, removed; each with its own state and directory."""

import os
import shutil
from dataclasses import replace

import httpx
import pytest
from e2b import NotFoundException
from e2b.exceptions import SandboxException


def test_the_default_context_exists(server, home):
    context = server.sandbox().list_code_contexts()[0]
    assert (context.language, context.cwd) == ("python", str(home))


def test_contexts_are_independent(server, home):
    sandbox = server.sandbox()
    (home / "sub").mkdir()
    context = sandbox.create_code_context(cwd=str(home / "sub"))
    sandbox.run_code("x = 1")
    assert sandbox.run_code("x", context=context).error.name == "NameError"
    assert sandbox.run_code("import os; os.getcwd()", context=context).text == str(home / "sub")
    assert [listed.id for listed in sandbox.list_code_contexts()][-1:] == [context.id]


def test_remove(server):
    sandbox = server.sandbox()
    before = sandbox.list_code_contexts()
    context = sandbox.create_code_context()
    sandbox.remove_code_context(context)
    assert [listed.id for listed in sandbox.list_code_contexts()] == [listed.id for listed in before]
    with pytest.raises(NotFoundException):
        sandbox.run_code("1", context=context)
    with pytest.raises(NotFoundException):
        sandbox.remove_code_context(context)


def test_restart_loses_state_and_writes_open_files(server, home):
    sandbox = server.sandbox()
    context = sandbox.list_code_contexts()[0]
    sandbox.run_code("x = 1\nf = open('f', 'w'); f.write('kept');")
    sandbox.restart_code_context(context)
    execution = sandbox.run_code("x")
    assert execution.error.name == "NameError"
    assert execution.execution_count == 1
    assert (home / "f").read_text() == "kept"


def test_missing_directory(server):
    with pytest.raises(SandboxException, match=r"500.*No such file.*/missing"):
        server.sandbox().create_code_context(cwd="/missing")
    assert len({context.language for context in server.sandbox().list_code_contexts()}) == len(
        server.sandbox().list_code_contexts()
    )


def test_unknown_language(server):
    with pytest.raises(SandboxException, match="'cobol'"):
        server.sandbox().create_code_context(language="cobol")


def test_token(new_server, config):
    server = new_server(replace(config, access_token="secret"))
    assert server.sandbox("secret").run_code("1").text == "1"
    assert server.sandbox("secret").list_code_contexts()
    for headers in ({}, {"X-Access-Token": "wrong"}):
        response = httpx.post(f"{server.url}/execute", json={"code": "1"}, headers=headers)
        assert (response.status_code, response.text) == (401, "Unauthorized")
    assert httpx.get(f"{server.url}/contexts", headers={"X-Access-Token": "wrong"}).status_code == 401
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_bash_takes_variables_in_any_mood_and_refuses_names_it_cannot_have(server):
    sandbox = server.sandbox()
    sandbox.run_code("set -u; x=5", language="bash")
    assert sandbox.run_code("echo $ONCE $x", language="bash", envs={"ONCE": "1"}).logs.stdout == ["1 5\n"]
    refused = sandbox.run_code("echo no", language="bash", envs={"MY-NAME": "1"})
    assert (refused.error.name, refused.logs.stdout) == ("EnvironmentError", [])
    assert "MY-NAME" in refused.error.value
    assert sandbox.run_code("echo $x", language="bash").logs.stdout == ["5\n"]


def test_bash_keeps_its_state(server, home):
    sandbox = server.sandbox()
    execution = sandbox.run_code("cd /; x=5; f() { echo f$1; }; echo out; echo err >&2", language="bash")
    assert ("".join(execution.logs.stdout), "".join(execution.logs.stderr)) == ("out\n", "err\n")
    execution = sandbox.run_code("pwd; echo $x; f 1; echo $ONCE", language="bash", envs={"ONCE": "a 'b' $x"})
    assert "".join(execution.logs.stdout).splitlines() == ["/", "5", "f1", "a 'b' $x"]
    execution = sandbox.run_code("echo [$ONCE]; false", language="bash")
    assert "".join(execution.logs.stdout) == "[]\n"
    assert execution.error.value == "exit status 1"
    assert execution.execution_count == 3


def test_a_changed_package_takes_effect_with_a_restart(server, changing_package, config):
    sandbox = server.sandbox()
    context = sandbox.list_code_contexts()[0]
    path = changing_package.parent.parent
    sandbox.run_code(f"import sys; sys.path.append({str(path)!r}); import changing")
    before = changing_package.stat()
    changing_package.write_text("version = 22\n")
    try:
        execution = sandbox.run_code("changing.version\n!echo pip install changing")
        note = "".join(execution.logs.stderr)
        assert "changing was changed from 1 to 1" in note
        assert "restart" in note
        assert sandbox.run_code("!echo pip again").logs.stderr == []
        sandbox.restart_code_context(context)
        code = f"import sys; sys.path.append({str(path)!r}); import changing, pandas; changing.version"
        assert sandbox.run_code(code).text == "22"
        assert (
            sandbox.run_code("[name for name in sys.modules if name.startswith('ringfence.')]").text == "[]"
        )
        assert sandbox.run_code("echo also", language="bash").logs.stdout == ["also\n"]
        if shutil.which("node"):
            assert sandbox.run_code("const a: string = 'also'; a", language="ts").text == "also"
        execution = sandbox.run_code("import matplotlib.pyplot as plt\nplt.plot([1, 2]);\nplt.show()\n1/0")
        assert len(execution.results) == 1
        assert execution.error.name == "ZeroDivisionError"
    finally:
        changing_package.write_text("version = 1\n")
        os.utime(changing_package, ns=(before.st_atime_ns, before.st_mtime_ns))
