"""Cells that are interrupted, that hang, that kill their kernel or flood it."""

import json
import time

import httpx
import pytest
from e2b import TimeoutException

from ringfence.guest.interpreter import context as context_module


def execute(server, code: str, **fields: object) -> list[dict]:
    with httpx.Client(timeout=60) as client:
        response = client.post(f"{server.url}/execute", json={"code": code, **fields})
    return [json.loads(line) for line in response.text.split("\n") if line]


def errors(events: list[dict]) -> list[dict]:
    return [event for event in events if event["type"] == "error"]


@pytest.mark.parametrize(
    "code",
    [
        "import time; time.sleep(60)",
        "while True: pass",
        "import asyncio; await asyncio.sleep(60)",
        "import subprocess; subprocess.run(['sleep', '60'])",
        "!sleep 60",
        "while True: print('x' * 100)",
    ],
)
def test_time_limit_keeps_the_variables(server, code):
    execute(server, "kept = 1")
    [error] = errors(execute(server, code, timeout=0.3))
    assert error["name"] == "TimeoutError"
    assert "0.3 s" in error["value"]
    assert "kept" in error["value"]
    assert server.sandbox().run_code("kept").text == "1"


def test_bash_is_interrupted_and_keeps_its_state(server):
    execute(server, "kept=1", language="bash")
    [error] = errors(execute(server, "while true; do sleep 60; done; echo no", language="bash", timeout=0.3))
    assert error["name"] == "TimeoutError"
    execution = server.sandbox().run_code("echo $kept", language="bash")
    assert "".join(execution.logs.stdout) == "1\n"


def test_a_cell_that_ignores_the_interrupt_is_killed(server, monkeypatch):
    monkeypatch.setattr(context_module, "INTERRUPT_GRACE", 0.3)
    code = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)"
    events = execute(server, code, timeout=0.3)
    [error] = errors(events)
    assert error["name"] == "TimeoutError"
    assert "did not react to an interrupt" in error["value"]
    assert "lost" in error["value"]
    assert [event["state"] for event in events if event["type"] == "context_state"] == ["lost"]
    assert events[-1] == {"type": "end_of_execution"}
    assert server.sandbox().run_code("1").text == "1"


def test_hanging_up_interrupts(server):
    sandbox = server.sandbox()
    sandbox.run_code("kept = 1")
    with pytest.raises(TimeoutException):
        sandbox.run_code("import time\ntry:\n    time.sleep(60)\nfinally:\n    interrupted = True", timeout=1)
    assert sandbox.run_code("kept, interrupted", timeout=20).text == "(1, True)"


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import os; os._exit(3)", "exited with status 3"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
    ],
)
def test_death_of_the_kernel_is_told(server, code, how):
    sandbox = server.sandbox()
    sandbox.run_code("x = 1")
    execution = sandbox.run_code(f"print('before')\n{code}")
    assert "".join(execution.logs.stdout) == "before\n"
    assert execution.error.name == "KernelDied"
    assert how in execution.error.value
    assert "lost" in execution.error.value
    assert sandbox.run_code("x").error.name == "NameError"


def test_death_between_cells_is_told_with_the_next(server):
    sandbox = server.sandbox()
    sandbox.run_code("import os, threading\nthreading.Timer(0.1, os._exit, [4]).start()\nx = 1")
    time.sleep(0.5)
    execution = sandbox.run_code("'x' in globals()")
    assert execution.text == "False"
    assert "exited with status 4" in "".join(execution.logs.stderr)


def test_restart_ends_a_running_cell(server):
    sandbox = server.sandbox()
    context = sandbox.list_code_contexts()[0]
    with httpx.stream(
        "POST", f"{server.url}/execute", json={"code": "print(1)\nimport time; time.sleep(60)"}
    ) as stream:
        lines = stream.iter_lines()
        while json.loads(next(lines))["type"] != "stdout":
            pass
        sandbox.restart_code_context(context)
        [error] = errors([json.loads(line) for line in lines])
    assert error["name"] == "ContextRestarting"
    assert sandbox.run_code("1").text == "1"


def test_a_flood_of_output_is_cut_truthfully(server, monkeypatch):
    monkeypatch.setattr(context_module, "OUTPUT_LIMIT", 100_000)
    events = execute(server, "for i in range(20): print('x' * 49_999)\ndisplay('end')")
    printed = "".join(event["text"] for event in events if event["type"] == "stdout")
    assert len(printed) == 100_000
    notes = [event["text"] for event in events if event["type"] == "stderr"]
    assert "limit of 100000 bytes" in notes[0]
    assert "900000 bytes" in notes[1]
    assert [event["text"] for event in events if event["type"] == "result"] == ["end"]


def test_many_small_prints_are_few_events(server):
    events = execute(server, "for i in range(20_000): print(i)")
    printed = [event["text"] for event in events if event["type"] == "stdout"]
    assert "".join(printed).split() == [str(i) for i in range(20_000)]
    assert len(printed) < 1000


def test_results_that_are_too_large(server):
    [result] = [e for e in execute(server, "'x' * 9_000_000") if e["type"] == "result"]
    assert len(result["text"]) < 100_000
    assert "left out" in result["text"]
    [result] = [
        e
        for e in execute(server, "from IPython.display import HTML\nHTML('x' * 9_000_000)")
        if e["type"] == "result"
    ]
    assert "html" not in result
    assert "9000000" in json.dumps(result["extra"])


def test_code_that_breaks_its_channel(server):
    execution = server.sandbox().run_code("import os\nos.closerange(3, 2000)\nimport time; time.sleep(60)")
    assert execution.error.name == "KernelDied"
    assert server.sandbox().run_code("1").text == "1"


def test_one_cell_at_a_time(server):
    with httpx.stream(
        "POST", f"{server.url}/execute", json={"code": "import time; time.sleep(0.5); x = 1"}
    ) as first:
        assert server.sandbox().run_code("x").text == "1"
        first.read()


def test_an_interrupt_that_comes_at_once_is_not_lost(server):
    execute(server, "kept = 1")
    for _ in range(5):
        [error] = errors(execute(server, "import time; time.sleep(60)", timeout=0.001))
        assert "kept" in error["value"]
    assert server.sandbox().run_code("kept").text == "1"


def test_a_kernel_that_does_not_read_its_cell_is_ended_at_the_time_limit(server, monkeypatch):
    monkeypatch.setattr(context_module, "INTERRUPT_GRACE", 0.2)
    execute(server, "import asyncio, time; asyncio.get_event_loop().call_later(0.05, time.sleep, 60)")
    time.sleep(0.3)
    [error] = errors(execute(server, "#" * 4_000_000, timeout=0.3))
    assert error["name"] == "TimeoutError"
    assert errors(execute(server, "1")) == []


@pytest.mark.parametrize("timeout", [float("nan"), float("inf"), 10**400])
def test_a_time_limit_is_a_number(server, timeout):
    answer = httpx.post(f"{server.url}/execute", content=json.dumps({"code": "1", "timeout": timeout}))
    assert answer.status_code == 422


def test_bash_that_exits_is_told(server):
    [error] = errors(execute(server, "exit 3", language="bash"))
    assert error["name"] == "KernelDied"
    assert "status 3" in error["value"]
    assert errors(execute(server, "true", language="bash")) == []
