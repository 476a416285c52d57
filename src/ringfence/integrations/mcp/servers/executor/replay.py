"""Rebuilding a lost session in a new sandbox: everything its journal has is done again, in order."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import httpx
from e2b import CommandExitException, SandboxException, TimeoutException
from e2b_code_interpreter import AsyncSandbox

from ringfence.integrations.mcp.servers.executor.cells import is_gone
from ringfence.integrations.mcp.servers.executor.journal import Entry, Journal
from ringfence.integrations.mcp.servers.executor.packages import INSTALL_SECONDS, install
from ringfence.integrations.mcp.servers.executor.session import Session

_SLACK_SECONDS = 30.0
_NAMED = 5


@dataclass
class Replay:
    """What became of a rebuilding.

    skipped: entries that were not done again, and why. differs: what now ends otherwise than it did.
    last_count: the kernel's number of the last cell.
    """

    done: int = 0
    skipped: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    last_count: int = 0

    def describe(self) -> str:
        """A few sentences for the next result."""
        parts = [f"{self.done} steps were done again"]
        for title, items in (("not repeated", self.skipped), ("now ends otherwise", self.differs)):
            if items:
                more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
                parts.append(f"{title}: {'; '.join(items[:_NAMED])}{more}")
        return ". ".join(parts) + "."


async def replay(
    session: Session, extend: Callable[[Session, float], Awaitable[None]], notify: Callable[[str], None]
) -> Replay:
    """Do everything in the session's journal again; `extend` sees to it that its sandbox lives that long.

    Errors of the connection are raised, those of the code reported.
    """
    journal, sandbox = session.journal, session.sandbox
    outcome = Replay()
    if journal.missing:
        outcome.skipped.append(f"{journal.missing} steps that the journal had no room for")
    for number, entry in enumerate(journal.entries, 1):
        notify(f"rebuilding the session: step {number} of {len(journal.entries)}")
        reason = _reason_to_skip(entry)
        if reason is not None:
            outcome.skipped.append(f"{_name(entry)} ({reason})")
            continue
        await extend(session, _seconds(entry) + _SLACK_SECONDS)
        status = await _again(sandbox, journal, entry, outcome)
        outcome.done += 1
        if status != entry.status:
            outcome.differs.append(f"{_name(entry)} ({entry.status} before, {status} now)")
    return outcome


def _reason_to_skip(entry: Entry) -> str | None:
    if entry.kind == "file" and entry.data is None:
        return "too large for the journal; put it in again"
    if entry.ends_python:
        return "it ended Python"
    if not entry.repeats():
        return {"lost": "the sandbox ended in it"}.get(entry.status, f"it ended with: {entry.status}")
    return None


def _name(entry: Entry) -> str:
    first = entry.text.strip().split("\n")[0][:60]
    return f"{entry.kind} `{first}`"


def _seconds(entry: Entry) -> float:
    return INSTALL_SECONDS if entry.kind == "install" else entry.exec_timeout


async def _again(sandbox: AsyncSandbox, journal: Journal, entry: Entry, outcome: Replay) -> str:
    try:
        async with asyncio.timeout(_seconds(entry) + _SLACK_SECONDS):
            if entry.kind == "cell":
                return await _cell(sandbox, entry, outcome)
            if entry.kind == "command":
                return await _command(sandbox, entry)
            if entry.kind == "install":
                return "ok" if (await install(sandbox, entry.text.split("\n"))).ok else "error"
            await sandbox.files.write(entry.text, journal.decode(entry) or b"")
    except TimeoutError:
        return "timeout"
    except (SandboxException, httpx.HTTPError) as error:
        if entry.kind == "file":
            return "error"
        raise error
    return "ok"


async def _cell(sandbox: AsyncSandbox, entry: Entry, outcome: Replay) -> str:
    execution = await sandbox.run_code(entry.text, timeout=0)
    outcome.last_count = execution.execution_count or outcome.last_count
    return "error" if execution.error else "ok"


async def _command(sandbox: AsyncSandbox, entry: Entry) -> str:
    try:
        await sandbox.commands.run(entry.text, cwd=entry.cwd, timeout=entry.exec_timeout)
    except CommandExitException:
        return "error"
    except TimeoutException:
        if await is_gone(sandbox):
            raise
        return "timeout"
    return "ok"
