import asyncio

import pytest
from e2b import AsyncSandbox, CommandExitException, PtySize, Sandbox, SandboxException


class Screen:
    """Collects what a terminal shows."""

    def __init__(self) -> None:
        self.text = b""

    def show(self, data: bytes) -> None:
        self.text += data

    async def until(self, wanted: bytes) -> None:
        async with asyncio.timeout(20):
            while wanted not in self.text:
                await asyncio.sleep(0.01)


async def test_terminal(sandbox: AsyncSandbox) -> None:
    screen = Screen()
    terminal = await sandbox.pty.create(
        PtySize(rows=30, cols=100), on_data=screen.show, envs={"OWN": "x"}, cwd="/usr"
    )
    assert terminal.pid in {process.pid for process in await sandbox.commands.list()}
    await sandbox.pty.send_stdin(terminal.pid, b"stty size; echo $TERM-$OWN; pwd; tty\n")
    await screen.until(b"30 100\r\n")
    await screen.until(b"xterm-256color-x\r\n")
    await screen.until(b"/usr\r\n")
    await screen.until(b"/dev/pts/")
    await sandbox.pty.resize(terminal.pid, PtySize(rows=11, cols=22))
    await sandbox.pty.send_stdin(terminal.pid, b"stty size; exit 6\n")
    await screen.until(b"11 22\r\n")
    with pytest.raises(CommandExitException) as caught:
        await terminal.wait()
    assert caught.value.exit_code == 6


async def test_interrupt_key(sandbox: AsyncSandbox) -> None:
    screen = Screen()
    terminal = await sandbox.pty.create(PtySize(rows=24, cols=80), on_data=screen.show)
    # One process says that it runs and then sleeps, so that the key cannot come between two of them.
    command = b"bash -c 'echo st\"\"art; exec sleep 60'; echo no''t\n"
    await sandbox.pty.send_stdin(terminal.pid, command)
    await screen.until(b"start\r\n")
    await sandbox.pty.send_stdin(terminal.pid, b"\x03")
    await sandbox.pty.send_stdin(terminal.pid, b"echo code $?\n")
    await screen.until(b"code 130\r\n")
    assert b"not\r\n" not in screen.text
    assert await sandbox.pty.kill(terminal.pid)


async def test_kinds_of_input_are_kept_apart(sandbox: AsyncSandbox) -> None:
    terminal = await sandbox.pty.create(PtySize(rows=24, cols=80), on_data=lambda data: None)
    with pytest.raises(SandboxException, match="tty assigned to process"):
        await sandbox.commands.send_stdin(terminal.pid, "x")
    with pytest.raises(SandboxException, match="close stdin for PTY"):
        await sandbox.commands.close_stdin(terminal.pid)
    await terminal.kill()
    command = await sandbox.commands.run("sleep 60", background=True, stdin=True)
    with pytest.raises(SandboxException, match="tty not assigned"):
        await sandbox.pty.send_stdin(command.pid, b"x")
    with pytest.raises(SandboxException, match="tty not assigned"):
        await sandbox.pty.resize(command.pid, PtySize(rows=1, cols=1))
    await command.kill()


async def test_killed_terminal_ends(sandbox: AsyncSandbox) -> None:
    terminal = await sandbox.pty.create(PtySize(rows=24, cols=80), on_data=lambda data: None)
    assert await terminal.kill()
    with pytest.raises(CommandExitException) as caught:
        await terminal.wait()
    assert caught.value.error == "signal: killed"
    assert await sandbox.pty.kill(terminal.pid) is False


async def test_sync_terminal(sync_sandbox: Sandbox) -> None:
    def check() -> bytes:
        terminal = sync_sandbox.pty.create(PtySize(rows=24, cols=80))
        sync_sandbox.pty.send_stdin(terminal.pid, b"echo he''llo; exit\n")
        shown: list[bytes] = []
        terminal.wait(on_pty=shown.append)
        return b"".join(shown)

    assert b"hello\r\n" in await asyncio.to_thread(check)
