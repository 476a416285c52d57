"""Languages other than Python in real sandboxes, through the official SDK."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from e2b.exceptions import SandboxException, TimeoutException
from e2b_code_interpreter import Sandbox

if TYPE_CHECKING:
    from conftest import RunningServer

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node.js on this machine")
needs_r = pytest.mark.skipif(
    not (shutil.which("R") and Path("/usr/share/jupyter/kernels/ir").exists()),
    reason="there is no R with IRkernel on this machine",
)


@pytest.fixture(scope="module")
def shared(server: "RunningServer") -> Iterator[Sandbox]:
    """One sandbox for the tests of this module that leave it usable."""
    sandbox = Sandbox.create(template="base", timeout=600, envs={"FROM_SANDBOX": "yes"}, **server.options)
    yield sandbox
    sandbox.kill()


def out(execution: Any) -> str:
    assert execution.error is None
    return "".join(execution.logs.stdout)


@needs_node
def test_default_contexts(sandbox: Sandbox) -> None:
    contexts = [(context.language, context.cwd) for context in sandbox.list_code_contexts()]
    assert contexts == [("python", "/home/user"), ("javascript", "/home/user")]


@needs_node
def test_javascript(shared: Sandbox) -> None:
    code = "import fs from 'node:fs'\nconst text = await fs.promises.readFile('f.txt', 'utf8'); text"
    shared.files.write("f.txt", "Hello, World!")
    assert shared.run_code(code, language="javascript").text == "Hello, World!"
    assert shared.run_code("text.length", language="js").text == "13"
    code = "process.getuid() + process.cwd() + process.env.FROM_SANDBOX + process.env.ONCE"
    assert shared.run_code(code, language="js", envs={"ONCE": "!"}).text == "1000/home/useryes!"


@needs_node
def test_typescript(shared: Sandbox) -> None:
    code = "interface P { name: string }\nconst p: P = { name: 'ts' }\np.name"
    assert shared.run_code(code, language="typescript").text == "ts"
    assert shared.run_code("p.name", language="js").text == "ts"


@needs_node
def test_javascript_is_interrupted_when_the_client_gives_up(shared: Sandbox) -> None:
    shared.run_code("var kept = 1", language="js")
    with pytest.raises(TimeoutException):
        shared.run_code("while (true);", language="js", timeout=1)
    assert shared.run_code("kept", language="js", timeout=20).text == "1"


@needs_node
def test_javascript_has_no_privilege(shared: Sandbox) -> None:
    code = (
        "require('fs').readFileSync('/proc/self/status', 'utf8').match(/(?<=Cap(Eff|Bnd):\\s*)\\w+/g).join()"
    )
    assert shared.run_code(code, language="js").text == "0000000000000000,0000000000000000"


def test_a_jupyter_kernel_of_the_users(shared: Sandbox) -> None:
    """What a kernelspec in the home says is tried, and why it fails is told."""
    shared.files.write(
        ".local/share/jupyter/kernels/mine/kernel.json", '{"argv": ["false"], "language": "x"}'
    )
    with pytest.raises(SandboxException, match=r"500.*Failed to start a kernel"):
        shared.run_code("1", language="mine")


@pytest.mark.not_under_gvisor("old versions have no pidfds")
@needs_r
def test_r(shared: Sandbox) -> None:
    execution = shared.run_code("x <- c(1, 2, 3); cat('out'); mean(x)", language="r")
    assert (out(execution), [result.text for result in execution.results]) == ("out", ["[1] 2"])
    execution = shared.run_code("plot(x); data.frame(a = x)", language="r")
    assert any(result.html for result in execution.results)
    assert any(result.png for result in execution.results)
    code = "cat(Sys.getenv('FROM_SANDBOX'), Sys.getenv('ONCE'), getwd())"
    assert out(shared.run_code(code, language="r", envs={"ONCE": "'\"\\"})) == "yes '\"\\ /home/user"
    with pytest.raises(TimeoutException):
        shared.run_code("Sys.sleep(60)", language="r", timeout=1)
    assert shared.run_code("sum(x)", language="R", timeout=20).results[0].text == "[1] 6"


@pytest.mark.not_under_gvisor("old versions have no pidfds")
@pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java on this machine")
@pytest.mark.timeout(300)
def test_java(server: "RunningServer") -> None:
    if "code-interpreter-v1" not in server.templates:
        pytest.skip("the server of this run has not the template with the kernel for Java")
    shared = Sandbox.create(
        "code-interpreter-v1", timeout=300, envs={"FROM_SANDBOX": "yes"}, **server.options
    )
    execution = shared.run_code('System.out.print("out");\nint a = 40; a + 2', language="java", timeout=200)
    assert (out(execution), execution.text) == ("out", "42")
    code = 'System.getProperty("FROM_SANDBOX") + System.getenv("FROM_SANDBOX") + System.getProperty("ONCE")'
    assert shared.run_code(code, language="java", envs={"ONCE": "'\"\\"}).text == "yesyes'\"\\"
    assert shared.run_code('System.getProperty("ONCE")', language="java").text is None
    broken = shared.run_code('throw new RuntimeException("broken");', language="java").error
    assert (broken.name, "broken" in broken.value) == ("RuntimeException", True)
    with pytest.raises(TimeoutException):
        shared.run_code("while (true) Thread.sleep(10);", language="java", timeout=1)
    assert shared.run_code("a", language="java", timeout=60).text == "40"
    shared.kill()


def test_a_kernel_whose_program_is_missing(shared: Sandbox) -> None:
    spec = '{"argv": ["no-such-program", "x"], "language": "y"}'
    shared.files.write(".local/share/jupyter/kernels/lonely/kernel.json", spec)
    with pytest.raises(SandboxException, match=r"500.*'lonely' needs the program 'no-such-program'"):
        shared.run_code("1", language="lonely")
    with pytest.raises(SandboxException) as refused:
        shared.run_code("1", language="cobol")
    assert "lonely" not in str(refused.value)


def test_unknown_language(shared: Sandbox) -> None:
    with pytest.raises(SandboxException, match=r"500.*no kernel for the language 'cobol'.*bash.*python"):
        shared.run_code("1", language="cobol")


def test_a_context_in_the_home_of_root(shared: Sandbox) -> None:
    context = shared.create_code_context(cwd="/root")
    assert context.cwd == "/root"
    code = "from pathlib import Path; Path('f').write_text('x'); print(Path.cwd(), *Path('.').glob('f'))"
    assert out(shared.run_code(code, context=context)) == "/root f\n"


def test_bash(shared: Sandbox) -> None:
    shared.run_code("x=1; cd /tmp", language="bash")
    assert out(shared.run_code("echo $x $PWD $FROM_SANDBOX", language="bash")) == "1 /tmp yes\n"
