"""Running one shell command in a sandbox, with its output cut for a model."""

import asyncio
import time
from typing import Any, Protocol

from e2b import AsyncCommandHandle, CommandExitException, TimeoutException
from e2b_code_interpreter import AsyncSandbox

from ringfence.integrations.mcp.servers.executor.filewatch import FileWatch
from ringfence.integrations.mcp.servers.executor.jobs import spill_output
from ringfence.integrations.mcp.servers.executor.output import Output
from ringfence.integrations.mcp.servers.executor.reports import stream_record, streams_text


class _Beat(Protocol):
    source: Any


async def run_command(
    sandbox: AsyncSandbox, command: str, seconds: float, cwd: str | None, watch: FileWatch, beat: _Beat
) -> tuple[str, dict[str, Any]]:
    """Run `command` with bash for at most `seconds`; what it wrote as text, and everything as data.

    A cancelled call and a command that takes too long are killed. The exit status is in the record.
    """
    stdout, stderr = Output(), Output()
    beat.source = stdout.last_line
    started = time.monotonic()
    handle = await sandbox.commands.run(
        command,
        background=True,
        cwd=cwd,
        on_stdout=stdout.append,
        on_stderr=stderr.append,
        timeout=seconds + 10,  # the sandbox's own deadline, should we be gone by then
        retain_output=False,
    )
    exit_code: int | None
    try:
        async with asyncio.timeout(seconds):
            exit_code = (await handle.wait()).exit_code
    except CommandExitException as error:
        exit_code = error.exit_code
    except (TimeoutError, TimeoutException):
        exit_code = None
        await handle.kill()
    except asyncio.CancelledError:
        kill_later(handle)
        raise
    record: dict[str, Any] = {"exit_code": exit_code, "duration_s": round(time.monotonic() - started, 3)}
    directory = f"/tmp/ringfence/c_{time.time_ns():x}"  # noqa: S108 - in the sandbox
    spill = await spill_output(sandbox, directory, {"stdout": stdout, "stderr": stderr})
    record |= stream_record("stdout", stdout, spill) | stream_record("stderr", stderr, spill)
    record["files"] = (await watch.look(sandbox)).as_dict()
    record = {name: part for name, part in record.items() if part not in ("", {})}
    return _text(record, seconds), record


_killers: set["asyncio.Task[bool]"] = set()


def kill_later(handle: AsyncCommandHandle) -> None:
    """Kill the command of a call that was cancelled, in a task of its own."""
    task = asyncio.create_task(handle.kill())
    _killers.add(task)
    task.add_done_callback(_killers.discard)


def _text(record: dict[str, Any], seconds: float) -> str:
    parts = streams_text(record)
    if record.get("exit_code") is None:
        record["status"] = "timeout"
        parts.append(f"[killed after timeout_s={seconds:g}]")
    else:
        parts.append(f"[exit status {record['exit_code']} in {record['duration_s']:.2f} s]")
    return "\n\n".join(parts)
