"""Cells of Python and bash in real sandboxes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from e2b import NotFoundException, SandboxException, TimeoutException

if TYPE_CHECKING:
    from tests.conformance.conftest import Face


async def test_state_results_and_counts(sdk: Face, box: Any) -> None:
    first = await sdk(box.run_code, "x = 1")
    second = await sdk(box.run_code, "x += 1; x")
    assert (first.text, second.text) == (None, "2")
    assert (first.execution_count, second.execution_count) == (1, 2)
    broken = await sdk(box.run_code, "1 / 0")
    assert broken.error.name == "ZeroDivisionError"
    assert "1 / 0" in broken.error.traceback
    assert (await sdk(box.run_code, "x")).execution_count == 4


async def test_indented_code(sdk: Face, box: Any) -> None:
    assert (await sdk(box.run_code, "\n    y = 5\n    y * 2\n    ")).text == "10"


async def test_callbacks(sdk: Face, box: Any) -> None:
    said: list[tuple[str, str]] = []
    results: list[Any] = []
    errors: list[Any] = []
    code = "import sys; print('out'); print('err', file=sys.stderr); display({'a': 1}); 'end'"
    await sdk(
        box.run_code, code,
        on_stdout=lambda message: said.append(("out", message.line)),
        on_stderr=lambda message: said.append(("err", message.line)),
        on_result=results.append,
        on_error=errors.append,
    )  # fmt: skip
    assert set(said) == {("out", "out\n"), ("err", "err\n")}
    assert [result.is_main_result for result in results] == [False, True]
    await sdk(box.run_code, "raise ValueError('no')", on_error=errors.append)
    assert [error.name for error in errors] == ["ValueError"]


async def test_output_streams_while_running(sdk: Face, box: Any) -> None:
    seen: list[str] = []
    code = "import time\nfor n in range(3):\n    print(n)\n    time.sleep(0.4)\nopen('done', 'w').close()"
    task = asyncio.ensure_future(sdk(box.run_code, code, on_stdout=lambda message: seen.append(message.line)))
    async with asyncio.timeout(20):
        while not seen:
            await asyncio.sleep(0.02)
    assert not await sdk(box.files.exists, "done")
    await task
    assert "".join(seen) == "0\n1\n2\n"


async def test_a_cell_that_takes_too_long_is_interrupted(sdk: Face, box: Any) -> None:
    await sdk(box.run_code, "kept = 'yes'")
    with pytest.raises(TimeoutException):
        await sdk(box.run_code, "import time; time.sleep(60)", timeout=1)
    assert (await sdk(box.run_code, "kept", timeout=10)).text == "yes"


async def test_contexts(sdk: Face, box: Any) -> None:
    listed = await sdk(box.list_code_contexts)
    assert "python" in [context.language for context in listed]
    await sdk(box.files.make_dir, "test")
    made = await sdk(box.create_code_context, language="python", cwd="/home/user/test")
    assert (made.language, made.cwd) == ("python", "/home/user/test")
    assert (await sdk(box.list_code_contexts))[-1].id == made.id
    assert (await sdk(box.run_code, "z = 1; import os; os.getcwd()", context=made)).text == "/home/user/test"
    assert (await sdk(box.run_code, "z")).error.name == "NameError"
    await sdk(box.restart_code_context, made.id)
    assert (await sdk(box.run_code, "z", context=made)).error.name == "NameError"
    await sdk(box.remove_code_context, made.id)
    with pytest.raises(NotFoundException):
        await sdk(box.run_code, "1", context=made)
    with pytest.raises(SandboxException):
        await sdk(box.run_code, "1", language="klingon")


async def test_variables_of_one_execution(sdk: Face, make: Callable[..., Any]) -> None:
    box = await make(envs={"OF_SANDBOX": "s"})
    show = "import os; print(os.environ.get('FOO'), os.environ['OF_SANDBOX'])"
    execution = await sdk(box.run_code, show, envs={"FOO": "bar", "OF_SANDBOX": "own"})
    assert execution.logs.stdout == ["bar own\n"]
    assert (await sdk(box.run_code, show)).logs.stdout == ["None s\n"]
    bash = 'echo "${FOO:-default}-$OF_SANDBOX"'
    assert (await sdk(box.run_code, bash, language="bash", envs={"FOO": "bar"})).logs.stdout == ["bar-s\n"]
    assert (await sdk(box.run_code, bash, language="bash")).logs.stdout == ["default-s\n"]


async def test_rich_results(sdk: Face, box: Any) -> None:
    frame = (await sdk(box.run_code, "import pandas as pd; pd.DataFrame({'a': [1, 2]})")).results[0]
    assert frame.data == {"a": [1, 2]}
    assert "<table" in frame.html
    assert frame.text
    listed = (await sdk(box.run_code, "[1, {'b': None}]")).results[0]
    assert listed.json == [1, {"b": None}]
    latex = (await sdk(box.run_code, "from IPython.display import *; Latex('$x$')")).results[0]
    assert latex.latex == "$x$"
    chart = (
        "import matplotlib.pyplot as plt; plt.plot([1, 2], [3, 4], label='line'); plt.title('T'); plt.show()"
    )
    (result,) = (await sdk(box.run_code, chart)).results
    assert result.png
    assert (result.chart.type.value, result.chart.title) == ("line", "T")
    json.dumps(result.chart.to_dict())


async def test_shell_lines_and_bash(sdk: Face, box: Any) -> None:
    assert "".join((await sdk(box.run_code, "!echo from-shell; pwd")).logs.stdout).split() == [
        "from-shell", "/home/user",
    ]  # fmt: skip
    await sdk(box.run_code, "cd /tmp; V=kept", language="bash")
    assert (await sdk(box.run_code, "pwd; echo $V", language="bash")).logs.stdout == ["/tmp\nkept\n"]


async def test_a_kernel_that_dies(sdk: Face, box: Any) -> None:
    died = await sdk(box.run_code, "import os; os.kill(os.getpid(), 9)")
    assert died.error is not None
    assert (await sdk(box.run_code, "1 + 1")).text == "2"


async def test_state_is_there_after_connecting_again(sdk: Face, box: Any) -> None:
    await sdk(box.run_code, "v = 41")
    again = await sdk(sdk.Sandbox.connect, box.sandbox_id, **sdk.options)
    assert (await sdk(again.run_code, "v + 1")).text == "42"
