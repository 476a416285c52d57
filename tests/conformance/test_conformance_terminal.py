"""Terminals in real sandboxes."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from e2b import CommandExitException, NotFoundException, PtySize

if TYPE_CHECKING:
    from tests.conformance.conftest import Face


class Screen:
    """A terminal and all that was shown on it."""

    def __init__(self, sdk: Face, box: Any) -> None:
        self.sdk, self.box = sdk, box
        self.shown = bytearray()
        self.handle: Any = None

    async def open(self, **options: Any) -> None:
        size = PtySize(rows=24, cols=80)
        if self.sdk.name == "sync":
            self.handle = await self.sdk(self.box.pty.create, size, **options)
            self.follow()
        else:
            self.handle = await self.box.pty.create(size, on_data=self.shown.extend, **options)

    def follow(self) -> None:
        """Read the synchronous SDK's events as they come, in a thread of their own."""
        self.error: Exception | None = None

        def read() -> None:
            try:
                self.handle.wait(on_pty=self.shown.extend)
            except Exception as error:
                self.error = error

        self.thread = threading.Thread(target=read, daemon=True)
        self.thread.start()

    async def type(self, text: str) -> None:
        await self.sdk(self.box.pty.send_stdin, self.handle.pid, text.encode())

    async def expect(self, text: str) -> None:
        async with asyncio.timeout(20):
            while text.encode() not in self.shown:
                await asyncio.sleep(0.02)

    async def end(self) -> int:
        """The exit code."""
        if self.sdk.name == "sync":
            await asyncio.to_thread(self.thread.join, 20)
            if self.error is not None and not isinstance(self.error, CommandExitException):
                raise self.error
            return int(self.error.exit_code) if self.error else 0
        try:
            return int((await self.handle.wait()).exit_code)
        except CommandExitException as error:
            return int(error.exit_code)


async def test_a_session(sdk: Face, box: Any) -> None:
    screen = Screen(sdk, box)
    await screen.open(envs={"ABC": "123"}, cwd="/tmp")
    await screen.type("echo value-$ABC $TERM $LANG; pwd; tty\n")
    for text in ("value-123 xterm-256color C.UTF-8", "/tmp", "/dev/pts/"):
        await screen.expect(text)
    await screen.type("exit 3\n")
    assert await screen.end() == 3


async def test_resizing(sdk: Face, box: Any) -> None:
    screen = Screen(sdk, box)
    await screen.open()
    await screen.type("stty size\n")
    await screen.expect("24 80")
    await sdk(box.pty.resize, screen.handle.pid, PtySize(rows=50, cols=133))
    await screen.type("stty size; tput cols\n")
    await screen.expect("50 133")
    await screen.type("exit\n")
    assert await screen.end() == 0


async def test_keys(sdk: Face, box: Any) -> None:
    screen = Screen(sdk, box)
    await screen.open()
    await screen.type("sleep 600\n")
    await asyncio.sleep(0.5)
    await screen.type("\x03")
    await screen.type("echo after-$((40 + 2))\n")
    await screen.expect("after-42")
    await screen.type("sleep 601 &\njobs\nfg\n")
    await screen.expect("Running")
    await asyncio.sleep(0.3)
    await screen.type("\x1a")
    await screen.expect("Stopped")
    await screen.type("exit\nexit\n")
    await screen.end()


async def test_killing(sdk: Face, box: Any) -> None:
    screen = Screen(sdk, box)
    await screen.open()
    assert screen.handle.pid in [process.pid for process in await sdk(box.commands.list)]
    assert await sdk(box.pty.kill, screen.handle.pid) is True
    assert await screen.end() != 0
    assert await sdk(box.pty.kill, screen.handle.pid) is False
    with pytest.raises(NotFoundException):
        await screen.type("x")


async def test_connecting(sdk: Face, box: Any) -> None:
    first = Screen(sdk, box)
    await first.open(envs={"FOO": "bar"})
    await first.type("echo one-$FOO\n")
    await first.expect("one-bar")
    second = Screen(sdk, box)
    if sdk.name == "sync":
        second.handle = await sdk(box.pty.connect, first.handle.pid)
        second.follow()
    else:
        await first.handle.disconnect()
        second.handle = await box.pty.connect(first.handle.pid, on_data=second.shown.extend)
    await second.type("echo two-$FOO; exit 4\n")
    await second.expect("two-bar")
    assert await second.end() == 4
    if sdk.name == "sync":
        assert await first.end() == 4


async def test_as_root(sdk: Face, box: Any) -> None:
    screen = Screen(sdk, box)
    await screen.open(user="root")
    await screen.type("echo i-am-$(whoami)-$(id -u)\n")
    await screen.expect("i-am-root-0")
    await screen.type("exit\n")
    assert await screen.end() == 0
