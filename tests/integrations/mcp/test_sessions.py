"""The life of sessions where calls overlap, are cancelled, or outlast a lease."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp.server.mcpserver.exceptions import ToolError

from ringfence.core.config import Settings
from ringfence.integrations.mcp.meta import META_KEY
from ringfence.integrations.mcp.servers.executor.executor import Executor
from ringfence.integrations.mcp.servers.executor.filewatch import Changes
from ringfence.integrations.mcp.servers.executor.hostfiles import HostFiles
from ringfence.integrations.mcp.servers.executor.session import Session
from tests.integrations.mcp.calls import sandboxes


class Beat:
    """Nobody listens."""

    source: Any = None

    def note(self, message: str) -> None:
        """Nothing."""


@pytest.fixture
async def executor(server: Any, tmp_path: Path) -> AsyncIterator[Executor]:
    """An executor on the shared server, with journals on disk."""
    settings = Settings(  # type: ignore[call-arg]
        _env_file=None,
        url=server.url,
        api_key=server.key,
        template="base",
        mcp_network="none",
        mcp_journal_dir=tmp_path / "journals",
    )
    made = Executor(settings, HostFiles([tmp_path]))
    yield made
    await made.aclose()


async def run(executor: Executor, code: str, handle: str | None = None, **options: Any) -> dict[str, Any]:
    given = {"timeout_s": None, "background": False, "on_loss": None} | options
    result = await executor.execute_code(code, handle, beat=Beat(), **given)
    return dict(result.meta or {})[META_KEY]  # type: ignore[no-any-return]


async def kill(server: Any, sandbox_id: str) -> None:
    async with httpx.AsyncClient(headers={"X-API-KEY": server.key}) as http:
        await http.delete(f"{server.url}/sandboxes/{sandbox_id}")


async def test_a_call_during_a_rebuilding_waits_for_its_end(executor: Executor, server: Any) -> None:
    session = await executor.sessions.create({})
    await run(executor, "import time; time.sleep(0.5)", session.handle)
    await run(executor, "late = 1", session.handle)
    await kill(server, session.sandbox.sandbox_id)
    executor.sessions.lost(session, "killed")
    first = asyncio.create_task(run(executor, "late", session.handle, on_loss="replay"))
    while session.handle not in {one.handle for one, _ in executor.sessions.all()}:
        await asyncio.sleep(0.01)
    second = await run(executor, "late + 1", session.handle)
    assert second.get("result") == "2", second
    assert (await first)["result"] == "1"


async def test_an_interruption_after_the_end_of_a_cell_changes_nothing(executor: Executor) -> None:
    session = await executor.sessions.create({})
    looking = asyncio.Event()
    look = session.watch.look

    async def slow(sandbox: Any) -> Changes:
        looking.set()
        await asyncio.sleep(0.1)
        return await look(sandbox)

    session.watch.look = slow  # type: ignore[method-assign]
    call = asyncio.create_task(run(executor, "a = 1; open('made', 'w').close()", session.handle))
    await looking.wait()
    await executor.interrupt_execution(session.handle, None)
    record = await call
    assert record["status"] == "ok"
    assert record["files"] == {"created": {"made": 0}}
    assert [entry.status for entry in session.journal.entries] == ["ok"]


async def test_a_lease_that_was_extended_is_not_shortened_by_the_next_call(executor: Executor) -> None:
    session = await executor.sessions.create({})
    await executor.sessions.extend(session, 7200)
    session.renewed -= 1000
    await run(executor, "1", session.handle)
    end = (await session.sandbox.get_info()).end_at.timestamp()
    assert end - time.time() > 7000


async def test_commands_that_take_long_extend_the_lease(executor: Executor) -> None:
    session = await executor.sessions.create({})
    await executor.run_command("true", session.handle, 7200, None, Beat())
    end = (await session.sandbox.get_info()).end_at.timestamp()
    assert end - time.time() > 7000


async def test_of_a_closed_session_nothing_is_kept(executor: Executor, tmp_path: Path) -> None:
    session = await executor.sessions.create({})
    call = asyncio.create_task(run(executor, "import time; time.sleep(60)", session.handle))
    while not session.running():
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    await executor.close_session(session.handle)
    record = await call
    assert record["session_state"] == "lost"
    assert "closed" in record["session_note"]
    assert [path for path in (tmp_path / "journals").rglob("*") if path.is_file()] == []


async def test_a_close_that_is_cancelled_still_ends_the_sandbox(executor: Executor) -> None:
    session = await executor.sessions.create({})
    closing = asyncio.create_task(executor.close_session(session.handle))
    while session.handle in {one.handle for one, _ in executor.sessions.all()}:
        await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait({closing})
    async with asyncio.timeout(10):
        while await session.sandbox.is_running():
            await asyncio.sleep(0.05)


async def test_a_session_whose_making_was_given_up_does_not_stay(executor: Executor, server: Any) -> None:
    before = await sandboxes(server)
    making = asyncio.create_task(executor.sessions.create({}))
    while await sandboxes(server) == before and not making.done():
        await asyncio.sleep(0)
    assert making.cancel()
    await asyncio.wait({making})
    async with asyncio.timeout(10):
        while await sandboxes(server) != before:
            await asyncio.sleep(0.05)
    assert executor.sessions.all() == []


async def test_the_number_of_sessions_is_limited_for_calls_at_once_too(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringfence.integrations.mcp.servers.executor.sessions.MAX_SESSIONS", 1)
    made = await asyncio.gather(*(executor.sessions.create({}) for _ in range(2)), return_exceptions=True)
    assert sum(isinstance(one, ToolError) for one in made) == 1
    assert len(executor.sessions.all()) == 1


async def test_what_a_failed_start_would_have_told_is_told_by_the_next(
    executor: Executor, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(executor, "a = 1")
    ((session, _),) = executor.sessions.all()
    await kill(server, session.sandbox.sandbox_id)
    executor.sessions.lost(session, "killed")
    with monkeypatch.context() as patched:
        patched.setattr(executor.sessions.sandboxes.backends, "choose", _fail)
        with pytest.raises(ToolError):
            await run(executor, "a")
    assert f"({session.handle}) has ended: killed" in (await run(executor, "1"))["session_note"]


async def _fail(*_: Any) -> Any:
    raise ToolError("No sandbox is available: try again")


async def test_pages_of_a_file_lose_nothing_whatever_characters_are_in_it(executor: Executor) -> None:
    session = await executor.sessions.create({})
    text = "".join(f"{n}%\r{n}\x0c\x85\u2028 done\n" for n in range(30))
    await executor.write_file(session.handle, "~/progress.log", text)
    read, offset = "", 1
    while offset:
        page = (await executor.read_file(session.handle, "~/progress.log", offset, 7)).meta[META_KEY]
        read += page["text"]
        offset = page.get("next_offset", 0)
    assert read == text


async def test_an_installation_that_is_cancelled_is_ended(executor: Executor) -> None:
    session = await executor.sessions.create({})
    await executor.write_file(session.handle, "pip/__main__.py", "import time; time.sleep(60)")
    installing = asyncio.create_task(executor.install_packages(["six"], session.handle, Beat()))
    while not await _pips(session):
        await asyncio.sleep(0.05)
    installing.cancel()
    async with asyncio.timeout(20):
        while await _pips(session):
            await asyncio.sleep(0.05)


async def _pips(session: Session) -> bool:
    found = await session.sandbox.commands.run("pgrep -f '[p]ip install' || true")
    return bool(found.stdout)
