"""The same job without a sandbox: what people do today."""

import os
import subprocess
import sys
import time
from pathlib import Path

import uv
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

from ringfence.engine.templates import definition_of
from ringfence.engine.templates.indexes import uv_environment

_PACKAGES = ("numpy", "pandas", "ipykernel")
_SLOW_ROUNDS = 10  # each takes seconds


class Baselines:
    """An ordinary virtual environment with the template's versions of the packages, made once at `place`."""

    def __init__(self, place: Path, job: str) -> None:
        self._python = place / "bin" / "python"
        self._job = job
        if not (place / ".ready").exists():
            self._make(place)
        self.python()  # byte code and page cache are warm, as they are for the sandbox
        self.ipykernel()

    def rounds(self, wanted: int) -> int:
        """How often to repeat these, when the sandbox is measured `wanted` times."""
        return min(wanted, _SLOW_ROUNDS)

    def python(self) -> float:
        """Seconds in which a fresh interpreter runs the job, prints the result and ends."""
        started = time.perf_counter()
        code = self._job.rstrip().replace("df.describe()", "print(df.describe())")
        answer = subprocess.run([self._python, "-c", code], check=True, capture_output=True, text=True)
        if "mean" not in answer.stdout:
            raise SystemExit("the job did not work in a plain Python")
        return time.perf_counter() - started

    def ipykernel(self) -> float:
        """Seconds from starting a fresh Jupyter kernel to the job's result; its end is not counted."""
        started = time.perf_counter()
        manager = KernelManager()
        manager._kernel_spec = KernelSpec(
            argv=[str(self._python), "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python"
        )
        manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        client = manager.client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=60)
            reply = client.execute_interactive(self._job, timeout=60, output_hook=lambda _: None)
            if reply["content"]["status"] != "ok":
                raise SystemExit("the job did not work in ipykernel")
            return time.perf_counter() - started
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)

    def _make(self, place: Path) -> None:
        print(f"making {place} for the comparison", file=sys.stderr)
        lock = definition_of("code-interpreter-v1").requirements_text()
        pins = [
            line.split(" ")[0]
            for line in lock.splitlines()
            if line.startswith(tuple(f"{p}==" for p in _PACKAGES))
        ]
        env = uv_environment(os.environ, Path.home())
        binary = uv.find_uv_bin()
        subprocess.run(
            [binary, "venv", "--quiet", "--clear", "--python", sys.executable, place], check=True, env=env
        )
        install = [binary, "pip", "install", "--quiet", "--compile-bytecode", "--python", self._python, *pins]
        subprocess.run(install, check=True, env=env)
        (place / ".ready").touch()
