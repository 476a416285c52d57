"""Compiling a template's files."""

import subprocess
import sys
import time
from pathlib import Path

from ringfence.engine.templates import bytecode


def test_the_workers_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    for number in range(4000):
        (tmp_path / f"m{number}.py").write_text(f"def f(x):\n    return x + {number}\n" * 40)
    command = [sys.executable, "-I", "-S", str(bytecode.__file__), str(tmp_path), "/inside", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "__pycache__").is_dir() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        output, _ = process.communicate(timeout=60)  # to its end: workers hold the other end of the pipe
    assert b"4000 4000" not in output
