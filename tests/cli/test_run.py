"""`ringfence run` as a user types it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from ringfence.cli import script_runner

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
COMMAND = [sys.executable, "-P", "-m", "ringfence", "run"]


@pytest.fixture
def environment(server: Any) -> dict[str, str]:
    template = "code-interpreter-v1" if "code-interpreter-v1" in server.templates else server.templates[0]
    return {
        **os.environ,
        "RINGFENCE_URL": server.url,
        "RINGFENCE_API_KEY": server.key,
        "RINGFENCE_TEMPLATE": template,
    }


@pytest.fixture
def run(tmp_path: Path, environment: dict[str, str]) -> Run:
    def start(*arguments: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            [*COMMAND, *arguments], cwd=tmp_path, env=environment, input=stdin, capture_output=True
        )

    return start


def test_output_and_status_pass_through_byte_for_byte(run: Run) -> None:
    code = (
        "import sys\nprint('out', flush=True)\nsys.stdout.buffer.write(bytes(range(256)))\n"
        "print('err', file=sys.stderr)\nsys.exit(7)"
    )
    ended = run("-c", code)
    assert ended.stdout == b"out\n" + bytes(range(256))
    assert ended.stderr == b"err\n"
    assert ended.returncode == 7


def test_more_output_than_one_cell_may_have(run: Run) -> None:
    ended = run("-c", "import sys\nfor _ in range(40): sys.stdout.write('x' * 2**20)\nsys.exit(5)")
    assert ended.stdout == b"x" * 40 * 2**20
    assert ended.stderr == b""
    assert ended.returncode == 5


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("pass", 0, b""),
        ("import sys; sys.exit()", 0, b""),
        ("import sys; sys.exit('no')", 1, b"no\n"),
        ("import os; os._exit(9)", 9, b""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 139, b"ended by SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137, b"ended by SIGKILL: perhaps"),
        ("input()", 1, b"EOFError"),
        ("x = = 1", 1, b"SyntaxError"),
        ("def f():\n    return 1 / 0\nf()", 1, b"ZeroDivisionError: division by zero\n"),
    ],
)
def test_every_way_to_end(run: Run, code: str, status: int, error: bytes) -> None:
    ended = run("-c", code)
    assert ended.returncode == status
    assert error in ended.stderr
    assert b"script_runner" not in ended.stderr


def test_a_script_with_arguments_and_files(run: Run, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "import sys, pathlib\n"
        "rows = pathlib.Path('in/data.csv').read_text().splitlines()\n"
        "pathlib.Path('out').mkdir()\n"
        "pathlib.Path('out/n.txt').write_text(str(len(rows)))\n"
        "print(sys.argv, __name__, __file__)\n"
    )
    (tmp_path / "data.csv").write_text("a\n1\n2\n")
    ended = run("--file", "data.csv:in/data.csv", "--out", "out:results", "job.py", "--flag", "x")
    assert ended.stderr == b""
    assert ended.stdout == b"['job.py', '--flag', 'x'] __main__ /home/user/job.py\n"
    assert ended.returncode == 0
    assert (tmp_path / "results" / "n.txt").read_text() == "3"


def test_a_script_from_standard_input(run: Run) -> None:
    ended = run("-", "a", stdin=b"import sys; print(sys.argv)")
    assert ended.stdout == b"['-', 'a']\n"


def test_shown_pictures_are_saved(run: Run, tmp_path: Path) -> None:
    code = """
import matplotlib.pyplot as plt
from PIL import Image
plt.plot([1, 2]); plt.show()
plt.figure(); plt.figure(); plt.show()
image = Image.new("RGB", (4, 4))
image.save("quiet.png")
image.show()
"""
    ended = run("--figures", "pictures", "-c", code)
    assert (ended.returncode, ended.stdout) == (0, b""), ended.stderr
    saved = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert saved == [f"figure-{number}.png" for number in (1, 2, 3, 4)]
    assert all((tmp_path / "pictures" / name).read_bytes().startswith(b"\x89PNG") for name in saved)


def test_a_shown_plotly_figure_is_saved_as_a_page(
    run: Run, tmp_path: Path, environment: dict[str, str]
) -> None:
    if environment["RINGFENCE_TEMPLATE"] != "code-interpreter-v1":
        pytest.skip("plotly is in the large template only")
    ended = run("-c", "import plotly.express as px; px.line(y=[1, 2]).show()")
    assert (ended.returncode, ended.stdout) == (0, b""), ended.stderr
    assert "plotly" in (tmp_path / "figures" / "figure-1.html").read_text()


def test_what_this_computer_does_not_give_or_take_is_told_in_one_line(run: Run) -> None:
    unread = run("--file", "/proc/self/mem", "-c", "print(1)")
    assert (unread.returncode, unread.stdout) == (125, b"")
    code = "import matplotlib.pyplot as plt; plt.plot([1]); plt.show(); print(1)"
    unsaved = run("--figures", "/proc/none", "-c", code)
    assert (unsaved.returncode, unsaved.stdout) == (1, b"1\n")
    for ended in (unread, unsaved):
        assert len(ended.stderr.splitlines()) == 1, ended.stderr
        assert ended.stderr.startswith(b"ringfence: ")


def test_arguments_may_be_longer_than_one_argument_may_be(tmp_path: Path) -> None:
    code, program = tmp_path / "code.py", tmp_path / "runner.py"
    code.write_text("import sys; print(len(sys.argv))")
    program.write_text(Path(script_runner.__file__).read_text())
    out, end = os.pipe()
    config = {"path": str(code), "shown": "code.py", "args": ["x" * 1000] * 300, "cwd": str(tmp_path)}
    directories = {"figures": str(tmp_path), "library": str(tmp_path), "runner": str(program)}
    pid = script_runner._started({**config, **directories}, end, 2)
    os.close(end)
    assert os.waitpid(pid, 0)[1] == 0
    with open(out) as file:
        assert file.read() == "301\n"


def test_a_missing_output_fails_a_script_that_succeeded(run: Run) -> None:
    ended = run("--out", "nothing.txt", "-c", "print(1)")
    assert ended.stdout == b"1\n"
    assert ended.returncode == 1
    assert b"--out nothing.txt" in ended.stderr


def test_the_timeout_ends_it_with_124(run: Run) -> None:
    ended = run("--timeout", "1", "-c", "print('begin', flush=True)\nwhile True: pass")
    assert ended.returncode == 124
    assert ended.stdout == b"begin\n"
    assert b"timeout of 1 s" in ended.stderr


def test_usage_errors(run: Run) -> None:
    assert run().returncode == 2
    assert run("missing.py").returncode == 2
    assert run("--file", ":", "-c", "1").returncode == 2
    assert run("--file", "missing", "-c", "1").returncode == 2


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_its_sandbox(
    tmp_path: Path, environment: dict[str, str], server: Any, number: int, status: int
) -> None:
    code = "import time; print('on', flush=True); time.sleep(300)"
    process = subprocess.Popen(
        [*COMMAND, "-c", code], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    assert _sandboxes(server)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == status
    assert b"Traceback" not in errors
    deadline = time.monotonic() + 20
    while _sandboxes(server):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_output_streams_while_the_script_runs(tmp_path: Path, environment: dict[str, str]) -> None:
    code = "import time; print('first'); time.sleep(300)"
    process = subprocess.Popen(
        [*COMMAND, "-c", code], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"first\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)


def test_with_the_embedded_server_whatever_proxy_is_set(tmp_path: Path) -> None:
    proxies = {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    environment = {**os.environ, **proxies, "RINGFENCE_TEMPLATE": "base"}
    ended = subprocess.run(
        [*COMMAND, "-c", "print(6 * 7)"], cwd=tmp_path, env=environment, capture_output=True
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == b"42\n"


def _sandboxes(server: Any) -> list[str]:
    listed = httpx.get(f"{server.url}/v2/sandboxes", headers={"X-API-KEY": server.key}).json()
    return [item["sandboxID"] for item in listed]
