"""A Ringfence server for a benchmark: `ringfence serve` on a free port, gone afterwards."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

TEMPLATE = "code-interpreter-v1"


@dataclass(frozen=True)
class Server:
    """A server that is ready. `options` are what the SDK's ``Sandbox.create`` needs to reach it."""

    options: dict[str, Any]
    isolation: str
    pid: int


@contextmanager
def serving(template: str = TEMPLATE, **environment: str) -> Iterator[Server]:
    """Start a server with one template warmed, the default one, and stop it at the end."""
    key = "e2b_" + os.urandom(20).hex()
    ready, ready_end = os.pipe()
    with tempfile.TemporaryDirectory(prefix="ringfence-bench-") as directory:
        command = [sys.executable, "-m", "ringfence", "serve", "--host", "127.0.0.1", "--port", "0"]
        command += ["--templates", template, "--data-dir", directory, "--ready-fd", str(ready_end)]
        env = {**os.environ, "RINGFENCE_API_KEY": key, **environment}
        process = subprocess.Popen(
            command, env=env, pass_fds=(ready_end,), stdin=subprocess.DEVNULL, stdout=sys.stderr
        )
        os.close(ready_end)
        try:
            with os.fdopen(ready) as pipe:
                line = pipe.readline()
            if not line:
                raise SystemExit("the server did not start")
            news = json.loads(line)
            options = {
                "template": template,
                "api_key": key,
                "api_url": news["url"],
                "sandbox_url": news["url"],
            }
            level = (news.get("isolation") or {}).get("level", "unknown")
            yield Server(options={**options, "debug": False}, isolation=level, pid=process.pid)
        finally:
            process.terminate()
            process.wait()
