"""Forks and snapshots carry live Python kernels: what of them is there afterwards, by the official SDK."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest
from e2b import SandboxException
from e2b_code_interpreter import AsyncSandbox, Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import RunningServer

LIFETIME = 300
SETUP = """
import functools, math, os, random, sys, threading
import collections.abc as abc
from enum import Enum
from dataclasses import dataclass

shared = [1, 2]
holders = {"first": shared, "second": shared}
loop = []; loop.append(loop)
base = 1

def add(n, step=10):
    "Adds the base."
    return n + base + step

class Point:
    made = 0
    def __init__(self, x):
        self.x = x
        Point.made += 1
    def up(self):
        return self.x + base

class Point3(Point):
    def up(self):
        return super().up() + 100

class Color(Enum):
    RED = 1

@dataclass
class Row:
    name: str
    color: Color = Color.RED

def counter():
    n = 0
    def increment():
        nonlocal n
        n += 1
        return n
    return increment, lambda: n

@functools.lru_cache
def cached(n):
    return n + base

point, point3, row = Point(1), Point3(2), Row("r")
increment, current = counter()
increment()
double = lambda n: 2 * n
partial = functools.partial(add, step=0)
rng = random.Random(7)
rng.random()
os.environ["MINE"] = "yes"
del os.environ["USER"]
os.makedirs("/tmp/there", exist_ok=True)
os.chdir("/tmp/there")
sys.path.append("/tmp/more")
40 + 2
"""
CHECK = """
assert holders["first"] is shared and holders["second"] is shared and loop[0] is loop
assert (add(1), add.__doc__, partial(1), double(4)) == (12, "Adds the base.", 2, 8)
assert (point.up(), point3.up(), type(point) is Point, isinstance(point3, Point)) == (2, 103, True, True)
assert row == Row("r") and row.color is Color.RED and Color(1) is Color.RED
assert (current(), increment(), current()) == (1, 2, 2)
assert cached(1) == 2 and cached.cache_info().maxsize == 128
assert (os.environ["MINE"], "USER" in os.environ, os.getcwd()) == ("yes", False, "/tmp/there")
assert "/tmp/more" in sys.path and math.floor(1.5) == 1 and abc.Sized
assert Out[1] == _ == _1 == 42 and In[1].strip().startswith("import functools")
base = 5
assert (add(1), point.up(), cached(3), partial(0)) == (16, 6, 8, 5)
import inspect, pickle
assert "Adds the base" in inspect.getsource(add)
assert pickle.loads(pickle.dumps(point)).x == 1
'fine'
"""


@pytest.fixture(scope="module")
def server(
    starting: Callable[..., RunningServer], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A server with the small template alone."""
    running = starting(tmp_path_factory.mktemp("data"), templates="base")
    yield running
    assert running.stop() == 0


@pytest.fixture
def sandbox(server: RunningServer) -> Iterator[Sandbox]:
    with Sandbox.create("base", timeout=LIFETIME, **server.options) as made:
        yield made


@contextlib.contextmanager
def forked(sandbox: Sandbox, count: int = 1) -> Iterator[list[Sandbox]]:
    made = sandbox.fork(count=count, timeout=LIFETIME)
    try:
        assert [one for one in made if isinstance(one, Exception)] == []
        yield made
    finally:
        for one in made:
            one.kill()


@contextlib.contextmanager
def copied(server: RunningServer, sandbox: Sandbox) -> Iterator[Sandbox]:
    """A sandbox that was made from a snapshot of `sandbox`."""
    snapshot = sandbox.create_snapshot()
    try:
        with Sandbox.create(snapshot.snapshot_id, timeout=LIFETIME, **server.options) as made:
            yield made
    finally:
        Sandbox.delete_snapshot(snapshot.snapshot_id, **server.options)


def value(sandbox: Sandbox, code: str, **options: object) -> str | None:
    execution = sandbox.run_code(code, **options)
    assert execution.error is None, execution.error.traceback
    return execution.text


def said(execution: object) -> str:
    return "".join(execution.logs.stderr)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_cells_have_made_is_in_a_fork(sandbox: Sandbox) -> None:
    value(sandbox, SETUP)
    with forked(sandbox) as (fork,):
        execution = fork.run_code(CHECK)
        assert (execution.text, said(execution), execution.error) == ("fine", "", None)
        assert execution.execution_count == 2
        assert value(fork, "rng.random()") == value(sandbox, "rng.random()")
        # A fork of the fork has what has become of it since.
        value(fork, "shared.append(3); more = add")
        with forked(fork) as (second,):
            assert value(second, "holders['second'], more is add, add(1), increment()") == (
                "([1, 2, 3], True, 16, 3)"
            )
    assert value(sandbox, "shared, base, current()") == "([1, 2], 1, 1)"


def test_what_cells_have_made_is_in_a_snapshot(server: RunningServer, sandbox: Sandbox) -> None:
    value(sandbox, SETUP)
    with copied(server, sandbox) as copy:
        assert value(copy, CHECK) == "fine"
    assert value(sandbox, CHECK) == "fine"


def test_frames_are_shared_until_they_are_changed(sandbox: Sandbox) -> None:
    value(
        sandbox,
        "import numpy as np, pandas as pd\n"
        "pd.set_option('display.max_rows', 7)\n"
        "array = np.arange(1_000_000)\n"
        "frame = pd.DataFrame({'a': np.ones(2_000_000), 'b': np.arange(2_000_000)})\n"
        "text = pd.DataFrame({'s': ['x', 'y'], 't': pd.to_datetime(['2020-01-01', None])})\n"
        "same = [frame]\n"
        "generator = np.random.default_rng(1)\n"
        "np.random.seed(1)",
    )
    with forked(sandbox, 2) as (first, second):
        code = "same[0] is frame, len(frame), float(frame.a.sum()), int(frame.b.iloc[-1]), int(array[-1])"
        assert value(first, code) == "(True, 2000000, 2000000.0, 1999999, 999999)"
        assert value(first, "text.s.tolist(), text.t.isna().tolist(), pd.get_option('display.max_rows')") == (
            "(['x', 'y'], [False, True], 7)"
        )
        # Nothing was copied for it: the pages are those of the file, mapped privately.
        maps = value(first, "sum('/states' in line for line in open('/proc/self/maps'))")
        assert int(maps or 0) >= 2
        value(first, "frame.loc[0, 'a'] = 5.0; array[0] = 7")
        assert value(second, "float(frame.a[0]), int(array[0])") == "(1.0, 0)"
        assert value(sandbox, "float(frame.a[0]), int(array[0])") == "(1.0, 0)"
        # A generator that the user has made is a variable; the global one belongs to the process.
        drawn = [value(one, "float(generator.random())") for one in (sandbox, first, second)]
        assert len(set(drawn)) == 1
        drawn = [value(one, "import random; np.random.random(), random.random()") for one in (first, second)]
        assert len(set(drawn)) == 2


async def test_asynchronously(server: RunningServer) -> None:
    sandbox = await AsyncSandbox.create("base", timeout=LIFETIME, **server.options)
    await sandbox.run_code("x = [1]\ndef f(): return x")
    forks = await sandbox.fork(count=2, timeout=LIFETIME)
    snapshot = await sandbox.create_snapshot()
    copy = await AsyncSandbox.create(snapshot.snapshot_id, timeout=LIFETIME, **server.options)
    for one in (*forks, copy):
        assert (await one.run_code("x.append(2); f()")).text == "[1, 2]"
    assert (await sandbox.run_code("f()")).text == "[1]"
    for one in (*forks, copy, sandbox):
        await one.kill()
    await AsyncSandbox.delete_snapshot(snapshot.snapshot_id, **server.options)


def test_contexts_keep_their_ids_and_each_its_own_variables(sandbox: Sandbox) -> None:
    value(sandbox, "who = 'default'")
    sandbox.files.make_dir("/home/user/sub")
    second = sandbox.create_code_context(cwd="/home/user/sub")
    value(sandbox, "who = 'second'\nlocal = open('in-sub', 'w').write('x')", context=second)
    unused = sandbox.create_code_context()
    bash = sandbox.create_code_context(language="bash")
    value(sandbox, "MINE=1", context=bash)
    before = [(one.id, one.language, one.cwd) for one in sandbox.list_code_contexts()]
    with forked(sandbox) as (fork,):
        assert [(one.id, one.language, one.cwd) for one in fork.list_code_contexts()] == before
        assert value(fork, "who") == "default"
        assert value(fork, "import os; who, os.path.exists('in-sub')", context=second) == "('second', True)"
        execution = fork.run_code("'who' in globals()", context=unused)
        assert (execution.text, execution.execution_count, said(execution)) == ("False", 1, "")
        execution = fork.run_code("echo got $MINE", context=bash)
        assert "".join(execution.logs.stdout) == "got\n"
        assert "Only Python's variables are copied" in said(execution)
        assert fork.create_code_context().id not in [one[0] for one in before]


def test_what_cannot_be_copied_is_named(server: RunningServer, sandbox: Sandbox) -> None:
    value(
        sandbox,
        "import threading\n"
        "kept = [1]\n"
        "lock = threading.Lock()\n"
        "lines = (n for n in kept)\n"
        "within = {'deep': [lock]}\n"
        "class Odd:\n"
        "    def __reduce__(self): return (Odd.make, (1,))\n"
        "    @staticmethod\n"
        "    def make(n): raise RuntimeError('not here')\n"
        "odd = Odd()\n"
        "pair = [kept, odd]\n"
        "tail = {'kept': kept}\n"
        "def use(): return lock.locked()\n",
    )
    with forked(sandbox) as (fork,):
        execution = fork.run_code("kept is tail['kept'], kept, sorted(set(globals()) & set(dir()))[-1]")
        assert execution.error is None, execution.error
        assert execution.text and execution.text.startswith("(True, [1]")
        told = said(execution)
        for name in ("lock", "lines", "within"):
            assert f"{name} (TypeError: cannot pickle" in told
        assert "odd (RuntimeError: not here)" in told
        assert "pair (" in told
        assert "kept (" not in told
        assert "use (" not in told
        assert fork.run_code("odd").error.name == "NameError"
        assert said(fork.run_code("1")) == ""  # told once
        value(fork, "lock = threading.Lock()")
        assert value(fork, "use()") == "False"
    assert value(sandbox, "within['deep'][0] is lock, use()") == "(True, False)"


def test_files_only(server: RunningServer, sandbox: Sandbox) -> None:
    value(sandbox, "x = 1")
    sandbox.files.write("a", "kept")
    snapshot = sandbox.create_snapshot(mode="filesystem")
    try:
        with Sandbox.create(snapshot.snapshot_id, **server.options) as copy:
            execution = copy.run_code("x")
            assert (execution.error.name, execution.execution_count) == ("NameError", 1)
            assert copy.files.read("a") == "kept"
    finally:
        Sandbox.delete_snapshot(snapshot.snapshot_id, **server.options)


def test_a_cold_start_starts_afresh(sandbox: Sandbox) -> None:
    value(sandbox, "x = 1")
    with forked(sandbox) as (fork,):
        assert value(fork, "x") == "1"
        fork.pause(mode="filesystem")
        fork.connect()
        assert fork.run_code("x").error.name == "NameError"


def test_a_paused_sandbox_is_copied_with_its_variables(server: RunningServer, sandbox: Sandbox) -> None:
    value(sandbox, "x = 41")
    sandbox.pause()
    with copied(server, sandbox) as copy:
        assert value(copy, "x + 1") == "42"
    sandbox.connect()
    assert value(sandbox, "x") == "41"


def test_the_middle_of_a_cell_is_copied(sandbox: Sandbox) -> None:
    code = (
        "import time\nstep = 0\nn = open('/tmp/started', 'w').close()\n"
        "while not __import__('os').path.exists('/tmp/stop'):\n"
        "    step += 1\n    time.sleep(0.01)\n"
        "step"
    )
    ended: list[object] = []
    cell = threading.Thread(target=lambda: ended.append(sandbox.run_code(code, envs={"ONLY": "1"})))
    cell.start()
    try:
        wait_for(lambda: sandbox.files.exists("/tmp/started"))
        with forked(sandbox) as (fork,):
            execution = fork.run_code("import os; step > 0, 'ONLY' in os.environ, In[1][:11]")
            assert (execution.text, execution.execution_count) == ("(True, False, 'import time')", 2)
    finally:
        sandbox.files.write("/tmp/stop", "")
        cell.join()
    assert ended[0].error is None
    assert int(ended[0].text) > 0


def test_a_kernel_that_has_crashed_starts_afresh(sandbox: Sandbox) -> None:
    value(sandbox, "x = 1")
    sandbox.run_code("import os; os.kill(os.getpid(), 9)")
    with forked(sandbox) as (fork,):
        execution = fork.run_code("x")
        assert (execution.error.name, execution.execution_count) == ("NameError", 1)


def test_without_cloudpickle_it_is_refused(server: RunningServer, sandbox: Sandbox) -> None:
    value(
        sandbox,
        "x = 1\nimport sys\n"
        "sys.modules['ringfence_kernel.pickling'].pickler_class.cache_clear()\n"
        "sys.modules['cloudpickle'] = None",
    )
    with pytest.raises(SandboxException, match=r"409.*cloudpickle.*not installed"):
        sandbox.fork()
    assert value(sandbox, "x") == "1"
    snapshot = sandbox.create_snapshot(mode="filesystem")
    assert Sandbox.delete_snapshot(snapshot.snapshot_id, **server.options)


FINISH = "self._finish(pipe, [('surroundings', None, 0, 0)], {})"
FINISH = "self._finish(pipe, [('surroundings', None, 0, 0)], {})"
GARBAGE = {
    "nothing": "pass",
    "noise": "os.write(descriptor, os.urandom(5000))",
    "a broken pickle": f"pipe.write(b'\\x80\\x05garbage'); {FINISH}",
    "an end": f"pipe.write(pickle.dumps(Exit())); {FINISH}",
    "places that are not there": (
        "pipe.write(pickle.dumps({})); index = json.dumps({'version': 1, 'python': sys.version_info[:2], "
        "'pieces': [('surroundings', None, 0, 0)], 'end': 1 << 60, 'buffers': [[1 << 50, 5]], "
        "'left_out': []}).encode(); pipe.write(index + len(index).to_bytes(8, 'little') + b'RFkernel')"
    ),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_a_kernel_that_writes_garbage_gets_a_fresh_one(sandbox: Sandbox, kind: str) -> None:
    value(
        sandbox,
        "import json, os, pickle, sys\n"
        "saving = sys.modules['ringfence_kernel.saving']\n"
        "class Exit:\n"
        "    def __reduce__(self): return (os._exit, (3,))\n"
        "def save(self, descriptor, **_):\n"
        "    pipe = saving.Pipe(descriptor)\n"
        f"    {GARBAGE[kind]}\n"
        "    return max(pipe.position, 5000 if 'urandom' in CODE else 0, 1)\n"
        f"CODE = {GARBAGE[kind]!r}\n"
        "saving.Saver.save = save",
    )
    if kind == "nothing":
        with pytest.raises(SandboxException, match=r"409.*did not write what it said"):
            sandbox.fork()
        return
    with forked(sandbox) as (fork,):
        execution = fork.run_code("6 * 7")
        assert (execution.text, execution.execution_count) == ("42", 1)
        assert "could not be restored" in said(execution)
        assert said(fork.run_code("1")) == ""
    assert value(sandbox, "CODE != ''") == "True"


def test_what_one_writes_too_much_is_refused(server: RunningServer) -> None:
    options = {**server.options, "metadata": {"ringfence.memory_mb": "256"}}
    with Sandbox.create("base", timeout=LIFETIME, **options) as sandbox:
        value(
            sandbox,
            "import os, sys\n"
            "def save(self, descriptor, **_):\n"
            "    data = bytes(1 << 20)\n"
            "    while True: os.write(descriptor, data)\n"
            "sys.modules['ringfence_kernel.saving'].Saver.save = save",
        )
        with pytest.raises(SandboxException, match=r"409.*larger than"):
            sandbox.fork()
        assert value(sandbox, "1 + 1") == "2"


def test_a_state_that_does_not_fit_is_refused_and_the_source_lives(server: RunningServer) -> None:
    options = {**server.options, "metadata": {"ringfence.memory_mb": "256"}}
    with Sandbox.create("base", timeout=LIFETIME, **options) as sandbox:
        # Each of them needs a place in the pickler's memory, and there is not room for all.
        value(sandbox, "many = [str(n) for n in range(1_700_000)]")
        with pytest.raises(SandboxException, match=r"409.*not enough memory"):
            sandbox.fork()
        assert value(sandbox, "len(many)") == "1700000"


def test_snapshots_with_variables_outlive_the_server(
    launch: Callable[..., RunningServer], tmp_path: Path
) -> None:
    server = launch(tmp_path, templates="base")
    with Sandbox.create("base", **server.options) as sandbox:
        value(sandbox, "x = [41]\ndef f(): return x[0] + 1")
        sandbox.create_snapshot("lasting")
    key = server.key
    assert server.stop() == 0
    (directory,) = (tmp_path / "snapshots").iterdir()
    assert (directory / "states").stat().st_size > 0
    assert (directory / "states").stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_uid == os.geteuid()
    server = launch(tmp_path, templates="base", RINGFENCE_API_KEY=key)
    options = {**server.options, "api_key": key}
    with Sandbox.create("lasting", **options) as copy:
        assert Sandbox.delete_snapshot("lasting", **options)
        assert value(copy, "f()") == "42"
    assert server.stop() == 0


def test_kernels_that_are_new_programs(launch: Callable[..., RunningServer], tmp_path: Path) -> None:
    server = launch(tmp_path, templates="base", RINGFENCE_FRESH_KERNELS="1")
    with Sandbox.create("base", timeout=LIFETIME, **server.options) as sandbox:
        value(sandbox, SETUP)
        with forked(sandbox) as (fork,):
            assert value(fork, CHECK) == "fine"
    assert server.stop() == 0
