"""Running cells through the official SDK."""

import base64

import httpx
import pytest
from e2b_code_interpreter import Execution, Sandbox, charts

PNG = b"\x89PNG"


@pytest.fixture
def sandbox(server) -> Sandbox:
    return server.sandbox()


def texts(execution: Execution) -> list[str | None]:
    return [result.text for result in execution.results]


def test_value_and_state(sandbox):
    sandbox.run_code("x = 41")
    execution = sandbox.run_code("x + 1")
    assert execution.text == "42"
    assert execution.error is None
    assert execution.execution_count == 2


async def test_async_sdk(server):
    sandbox = server.async_sandbox()
    lines = []
    execution = await sandbox.run_code("print('hi')\n'bye'", on_stdout=lambda said: lines.append(said.line))
    assert lines == ["hi\n"]
    assert execution.text == "bye"


def test_quotes_are_stripped_once(sandbox):
    assert sandbox.run_code("'quoted'").text == "quoted"
    assert sandbox.run_code('"it\'s"').text == "it's"


def test_stdout_and_stderr_from_everywhere(sandbox):
    code = """
import os, subprocess, sys, ctypes
print("python")
os.write(1, b"descriptor\\n")
subprocess.run(["echo", "child"])
ctypes.CDLL(None).puts(b"libc")
print("warning", file=sys.stderr)
"""
    execution = sandbox.run_code(code)
    assert sorted("".join(execution.logs.stdout).split()) == ["child", "descriptor", "libc", "python"]
    assert "".join(execution.logs.stderr) == "warning\n"


def test_output_and_results_keep_their_order(sandbox):
    seen = []
    sandbox.run_code(
        "for i in range(5):\n    print(i)\n    display(i * 10)",
        on_stdout=lambda message: seen.extend(message.line.split()),
        on_result=lambda result: seen.append(result.text),
    )
    assert seen == ["0", "0", "1", "10", "2", "20", "3", "30", "4", "40"]


def test_separators_that_clients_split_lines_at(sandbox):
    execution = sandbox.run_code(r"print('a\u2028b\x85c\ud800'); '\u2028'")
    assert "".join(execution.logs.stdout) == "a\u2028b\x85c\\ud800\n"
    assert execution.error is None


def test_bytes_that_are_no_utf8(sandbox):
    execution = sandbox.run_code(r"import os; os.write(1, b'\xff\xc3'); os.write(1, b'\xa4\n');")
    assert "".join(execution.logs.stdout) == "\ufffdä\n"


def test_error(sandbox):
    execution = sandbox.run_code("def f():\n    return 1 / 0\nf()")
    assert execution.error is not None
    assert execution.error.name == "ZeroDivisionError"
    assert execution.error.value == "division by zero"
    assert "----> 3 f()" in execution.error.traceback
    assert "\x1b[" not in execution.error.traceback


@pytest.mark.parametrize(
    ("code", "name", "value"),
    [
        ("def (", "SyntaxError", "invalid syntax"),
        ("import sys; sys.exit(3)", "SystemExit", "3"),
        ("exit()", "SystemExit", ""),
        ("%no_such_magic", "UsageError", "not found"),
        ("raise ExceptionGroup('g', [ValueError(1)])", "ExceptionGroup", "g (1 sub-exception)"),
        ("input('Name?')", "StdinNotImplementedError", "nobody can answer"),
        ("await nothing", "NameError", "nothing"),
        (
            "raise type('E' * 20_000_000, (Exception,), {})('long')",
            f"{'E' * 512}\n… [19998976 characters left out] …\n{'E' * 512}",
            "long",
        ),
    ],
)
def test_errors_that_keep_the_kernel(sandbox, code, name, value):
    sandbox.run_code("kept = 1")
    execution = sandbox.run_code(code)
    assert execution.error is not None
    assert execution.error.name == name
    assert value in execution.error.value
    assert "ringfence" not in execution.error.traceback
    assert sandbox.run_code("kept").text == "1"


def test_a_deep_recursion_is_told_without_a_search_for_each_frame(sandbox):
    sandbox.run_code(
        "import sys, types\n"
        "class Counting(types.ModuleType):\n"
        "    asked = 0\n"
        "    def __getattr__(self, name):\n"
        "        Counting.asked += name == '__file__'\n"
        "        raise AttributeError(name)\n"
        "sys.modules['counting'] = Counting('counting')\n"
        "def deeper(): deeper()"
    )
    execution = sandbox.run_code("deeper()")
    assert execution.error.name == "RecursionError"
    assert "deeper()" in execution.error.traceback
    assert int(sandbox.run_code("Counting.asked").text) < 20


def test_execution_count_counts_failures(sandbox):
    assert sandbox.run_code("1 / 0").execution_count == 1
    assert sandbox.run_code("1").execution_count == 2


def test_top_level_await_and_asyncio_run(sandbox):
    assert sandbox.run_code("import asyncio\nasync def f(): return 7\nawait f()").text == "7"
    assert sandbox.run_code("asyncio.run(f())").text == "7"
    assert sandbox.run_code("await f()").text == "7"


def test_tasks_go_on_between_cells(sandbox):
    sandbox.run_code(
        "import asyncio, threading\ndone = threading.Event()\n"
        "async def later():\n    await asyncio.sleep(0.01)\n    done.set()\n"
        "task = asyncio.get_event_loop().create_task(later())"
    )
    sandbox.run_code("1")
    execution = sandbox.run_code("await task; done.is_set()")
    assert execution.text == "True"


def test_indented_code_magics_and_commands(sandbox):
    assert "".join(sandbox.run_code("    x = 1\n    print(x)").logs.stdout) == "1\n"
    execution = sandbox.run_code("!echo out; echo err >&2; exit 3")
    assert ("".join(execution.logs.stdout), "".join(execution.logs.stderr)) == ("out\n", "err\n")
    assert sandbox.run_code("_exit_code").text == "3"
    assert sandbox.run_code("files = !echo one\nfiles").text == "['one']"
    assert sandbox.run_code("%cd /\n%pwd").text == "/"


def test_main_is_the_users(sandbox):
    code = """
import multiprocessing, pickle, sys
def double(x): return 2 * x
with multiprocessing.Pool(2) as pool:
    values = pool.map(double, [1, 2])
leaks = [name for name in sys.modules if name.split(".")[0] in ("ringfence", "starlette", "uvicorn")]
values, pickle.loads(pickle.dumps(double))(4), sys.modules["__main__"].double is double, leaks
"""
    assert sandbox.run_code(code).text == "([2, 4], 8, True, [])"


def test_display_of_every_type(sandbox):
    code = """
class All:
    def _repr_html_(self): return "<b>"
    def _repr_markdown_(self): return "*m*"
    def _repr_svg_(self): return "<svg/>"
    def _repr_png_(self): return b"png"
    def _repr_jpeg_(self): return b"jpeg"
    def _repr_latex_(self): return "$x$"
    def _repr_json_(self): return {"a": 1}
    def _repr_javascript_(self): return "1"
    def _repr_pdf_(self): return b"pdf"
    def _repr_mimebundle_(self, **_): return {"x-own/type": "own"}
    def __repr__(self): return "all"
All()
"""
    [result] = sandbox.run_code(code).results
    assert result.is_main_result
    assert (result.text, result.html, result.markdown, result.svg) == ("all", "<b>", "*m*", "<svg/>")
    assert (result.latex, result.json, result.javascript) == ("$x$", {"a": 1}, "1")
    encoded = [base64.b64decode(value) for value in (result.png, result.jpeg, result.pdf)]
    assert encoded == [b"png", b"jpeg", b"pdf"]
    assert result.extra == {"x-own/type": "own"}


def test_updated_displays_show_their_last_state(sandbox):
    execution = sandbox.run_code("h = display('one', display_id=True)\nh.update('two')\nh.update('three')")
    assert texts(execution) == ["one", "three"]


def test_lists_and_dicts_have_json(sandbox):
    execution = sandbox.run_code("{'a': [1, float('nan')], 2: None}")
    assert execution.results[0].json == {"a": [1, None], "2": None}
    assert sandbox.run_code("display([1])").results[0].json is None


def test_dataframe(sandbox):
    code = "import pandas as pd\npd.DataFrame({'a': [1, 2], 't': pd.to_datetime(['2024-01-02', None])})"
    [result] = sandbox.run_code(code).results
    assert result.data == {"a": [1, 2], "t": ["2024-01-02T00:00:00", None]}
    assert result.html.startswith("<div>")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("plt.plot([1, 2, 3])", charts.LineChart),
        ("plt.scatter([1, 2], [3, 4])", charts.ScatterChart),
        ("plt.bar(['a', 'b'], [1, 2])", charts.BarChart),
        ("plt.pie([1, 2], labels=['a', 'b'])", charts.PieChart),
        ("plt.boxplot([[1, 2, 3, 4, 5], [2, 4, 6, 8, 10]], patch_artist=True)", charts.BoxAndWhiskerChart),
        ("f, ax = plt.subplots(1, 2); ax[0].plot([1, 2]); ax[1].bar(['a'], [1])", charts.SuperChart),
    ],
)
def test_charts(sandbox, code, kind):
    execution = sandbox.run_code(f"import matplotlib.pyplot as plt\n{code};")
    [result] = execution.results
    assert base64.b64decode(result.png).startswith(PNG)
    assert isinstance(result.chart, kind)
    assert not result.is_main_result
    assert execution.logs.stderr == []


def test_figures_are_shown_once_and_closed(sandbox):
    code = "import matplotlib.pyplot as plt\nplt.plot([1])\nplt.savefig('f.png')\nplt.show()\nprint('after')"
    execution = sandbox.run_code(code)
    assert len(execution.results) == 1
    assert sandbox.run_code("plt.get_fignums()").text == "[]"


def test_pictures(sandbox):
    execution = sandbox.run_code(
        "from PIL import Image\nimage = Image.new('RGB', (2, 2))\nimage.save('i.png')\nimage.show()"
    )
    assert len(execution.results) == 2
    assert all(base64.b64decode(result.png).startswith(PNG) for result in execution.results)


def test_plotly(sandbox):
    execution = sandbox.run_code("import plotly.express as px\npx.line(x=[1, 2], y=[3, 4])")
    [result] = execution.results
    assert execution.error is None
    assert "application/vnd.plotly.v1+json" in result.extra
    assert "cdn.plot.ly" in result.html
    assert len(result.html) < 100_000


def test_environment(sandbox):
    code = "import os; os.environ['FROM_SANDBOX'], os.environ.get('ONCE'), os.environ['E2B_SANDBOX_ID']"
    assert sandbox.run_code(code, envs={"ONCE": "it's $1"}).text == "('yes', \"it's $1\", 'isandbox')"
    assert sandbox.run_code(code).text == "('yes', None, 'isandbox')"


def test_randomness_differs_between_kernels(sandbox):
    code = (
        "import random, uuid, numpy, multiprocessing as mp\n"
        "(random.random(), numpy.random.rand(), str(uuid.uuid4()), mp.current_process().authkey)"
    )
    other = sandbox.create_code_context()
    first, second = eval(sandbox.run_code(code).text), eval(sandbox.run_code(code, context=other).text)
    assert all(one != two for one, two in zip(first, second, strict=True))


def test_numeric_threads_come_back_after_the_fork(sandbox):
    assert (
        sandbox.run_code("import numpy as np\na = np.ones((400, 400))\nfloat((a @ a)[0, 0])").text == "400.0"
    )


def test_a_forked_child_is_no_second_kernel(sandbox):
    code = (
        "import os, sys\npid = os.fork()\nif pid: os.waitpid(pid, 0); print('parent')\nelse: display('child')"
    )
    execution = sandbox.run_code(code)
    assert sorted("".join(execution.logs.stdout).split()) == ["'child'", "parent"]
    assert sandbox.run_code("'alive'").text == "alive"


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"code": "1", "context_id": "x", "language": "python"}, 400, "Only one of"),
        ({"code": "1", "context_id": "x"}, 404, "Context x not found"),
        ({"code": "1", "language": "cobol"}, 500, "'cobol'"),
        ({"code": 1}, 422, "code"),
        ({"code": "1", "env_vars": {"a=b": "c"}}, 422, "env_vars"),
        ({"code": "1", "timeout": -1}, 422, "timeout"),
        ([], 422, "object"),
    ],
)
def test_bad_requests(server, body, status, text):
    response = httpx.post(f"{server.url}/execute", json=body)
    assert response.status_code == status
    assert text in response.text


def test_code_that_is_too_large(server):
    response = httpx.post(f"{server.url}/execute", content=b" " * (17 * 1024 * 1024))
    assert response.status_code == 413
