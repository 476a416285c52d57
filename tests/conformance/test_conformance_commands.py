"""Commands in real sandboxes, as the SDK's users run them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from e2b import (
    AuthenticationException,
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    SandboxException,
    TimeoutException,
)

if TYPE_CHECKING:
    from tests.conformance.conftest import Face


async def test_output_and_exit_code(sdk: Face, box: Any) -> None:
    said: list[str] = []
    result = await sdk(
        box.commands.run, "echo out; echo err >&2", on_stdout=said.append, on_stderr=said.append
    )
    assert (result.stdout, result.stderr, result.exit_code, result.error) == ("out\n", "err\n", 0, None)
    assert sorted(said) == ["err\n", "out\n"]
    with pytest.raises(CommandExitException) as failure:
        await sdk(box.commands.run, "echo before; exit 7")
    assert (failure.value.exit_code, failure.value.stdout) == (7, "before\n")


@pytest.mark.parametrize("text", ["!@#%^&*()_+", "Hello,\nWorld!", "žluťoučký 🐎", "tab\there"])
async def test_text_passes_unchanged(sdk: Face, box: Any, text: str) -> None:
    result = await sdk(box.commands.run, f"cat <<'END'\n{text}\nEND")
    assert result.stdout == text + "\n"


async def test_broken_characters_are_replaced(sdk: Face, box: Any) -> None:
    result = await sdk(box.commands.run, 'printf "%8191s\\xe2" "" | tr " " a')
    assert result.stdout == "a" * 8191 + "\ufffd"


async def test_a_character_split_between_writes(sdk: Face, box: Any) -> None:
    result = await sdk(box.commands.run, r"printf '\xc5'; sleep 0.2; printf '\xbe'")
    assert result.stdout == "ž"


async def test_the_timeout_kills(sdk: Face, box: Any) -> None:
    with pytest.raises(TimeoutException):
        await sdk(box.commands.run, "sleep 61", timeout=1)
    async with asyncio.timeout(20):
        while await sdk(box.commands.list):
            await asyncio.sleep(0.05)


async def test_no_timeout(sdk: Face, box: Any) -> None:
    assert (await sdk(box.commands.run, "sleep 0.3; echo done", timeout=0)).stdout == "done\n"


async def test_users(sdk: Face, box: Any) -> None:
    assert (await sdk(box.commands.run, "whoami; id -u; echo $HOME; pwd")).stdout.split() == [
        "user", "1000", "/home/user", "/home/user",
    ]  # fmt: skip
    assert (await sdk(box.commands.run, "whoami; id -u; echo $HOME; pwd", user="root")).stdout.split() == [
        "root", "0", "/root", "/root",
    ]  # fmt: skip
    with pytest.raises(AuthenticationException, match="invalid username: 'nobodysuch'"):
        await sdk(box.commands.run, "true", user="nobodysuch")


async def test_directories(sdk: Face, box: Any) -> None:
    assert (await sdk(box.commands.run, "pwd", cwd="/tmp")).stdout == "/tmp\n"
    await sdk(box.files.make_dir, "deep/er")
    assert (await sdk(box.commands.run, "pwd", cwd="deep/er")).stdout == "/home/user/deep/er\n"
    assert (await sdk(box.commands.run, "pwd", cwd="~/deep")).stdout == "/home/user/deep\n"
    with pytest.raises(InvalidArgumentException, match="cwd '/not/here' does not exist"):
        await sdk(box.commands.run, "pwd", cwd="/not/here")


async def test_in_the_background(sdk: Face, box: Any) -> None:
    handle = await sdk(box.commands.run, "echo first; sleep 0.3; echo second", background=True)
    assert handle.pid > 1
    result = await sdk(handle.wait)
    assert result.stdout == "first\nsecond\n"


async def test_listing_and_killing(sdk: Face, box: Any) -> None:
    first = await sdk(box.commands.run, "sleep 61", background=True)
    second = await sdk(box.commands.run, "sleep 62", background=True, envs={"A": "b"}, cwd="/tmp")
    listed = {process.pid: process for process in await sdk(box.commands.list)}
    assert set(listed) == {first.pid, second.pid}
    assert listed[second.pid].cmd == "/bin/bash"
    assert listed[second.pid].args == ["-l", "-c", "sleep 62"]
    assert (listed[second.pid].envs, listed[second.pid].cwd) == ({"A": "b"}, "/tmp")
    assert await sdk(first.kill) is True
    assert await sdk(box.commands.kill, second.pid) is True
    for handle in (first, second):
        with pytest.raises(CommandExitException) as gone:
            await sdk(box.commands.run, f"kill -0 {handle.pid}")
        assert gone.value.exit_code == 1
        with pytest.raises(CommandExitException) as ended:
            await sdk(handle.wait)
        assert "killed" in str(ended.value.error)
    assert await sdk(box.commands.kill, first.pid) is False
    assert await sdk(box.commands.list) == []


async def test_standard_input(sdk: Face, box: Any) -> None:
    handle = await sdk(box.commands.run, "cat", background=True, stdin=True)
    await sdk(box.commands.send_stdin, handle.pid, "hello\n")
    await sdk(handle.send_stdin, "again")
    await sdk(box.commands.close_stdin, handle.pid)
    assert (await sdk(handle.wait)).stdout == "hello\nagain"


async def test_standard_input_is_closed_unless_asked_for(sdk: Face, box: Any) -> None:
    assert (await sdk(box.commands.run, "wc -c")).stdout.strip() == "0"
    handle = await sdk(box.commands.run, "sleep 60", background=True)
    with pytest.raises(SandboxException):
        await sdk(box.commands.send_stdin, handle.pid, "x")
    await sdk(handle.kill)
    with pytest.raises(NotFoundException):
        await sdk(box.commands.send_stdin, 31_000, "x")


async def test_connecting(sdk: Face, box: Any) -> None:
    first = await sdk(box.commands.run, "for i in 1 2 3 4 5 6; do echo $i; sleep 0.2; done", background=True)
    second = await sdk(box.commands.connect, first.pid)
    assert second.pid == first.pid
    late = await sdk(second.wait)
    assert late.exit_code == 0
    assert late.stdout.endswith("6\n")
    assert (await sdk(first.wait)).stdout == "1\n2\n3\n4\n5\n6\n"
    with pytest.raises(NotFoundException):
        await sdk(box.commands.connect, 31_000)


async def test_a_command_outlives_a_client_that_hangs_up(sdk: Face, box: Any) -> None:
    handle = await sdk(box.commands.run, "sleep 0.5; echo late > late.txt", background=True)
    await sdk(handle.disconnect)
    await sdk(box.commands.run, "while ! test -s late.txt; do sleep 0.05; done")
    assert await sdk(box.files.read, "late.txt") == "late\n"


async def test_another_client_kills_it(sdk: Face, box: Any) -> None:
    handle = await sdk(box.commands.run, "sleep 61", background=True)
    other = await sdk(sdk.Sandbox.connect, box.sandbox_id, **sdk.options)
    assert await sdk(other.commands.kill, handle.pid) is True
    with pytest.raises(CommandExitException):
        await sdk(handle.wait)


async def test_many_at_once(sdk: Face, box: Any) -> None:
    results = await asyncio.gather(*(sdk(box.commands.run, f"echo {n}") for n in range(12)))
    assert [int(result.stdout) for result in results] == list(range(12))


async def test_a_server_started_in_the_background_keeps_running(sdk: Face, box: Any) -> None:
    await sdk(box.commands.run, "python3 -m http.server 8123 --bind 127.0.0.1", background=True)
    script = "for i in $(seq 100); do curl -sf localhost:8123/ >/dev/null && exit 0; sleep 0.1; done; exit 1"
    assert (await sdk(box.commands.run, script)).exit_code == 0


async def test_environment_of_a_command(sdk: Face, make: Callable[..., Any]) -> None:
    box = await make(envs={"FOO": "sandbox", "KEPT": "yes"})
    assert (await sdk(box.commands.run, "echo $FOO $KEPT")).stdout == "sandbox yes\n"
    assert (await sdk(box.commands.run, "echo $FOO $KEPT", envs={"FOO": "own"})).stdout == "own yes\n"
    assert (await sdk(box.commands.run, "echo $FOO")).stdout == "sandbox\n"
    script = "python3 -c \"import os; print(os.environ['FOO'])\""
    assert (await sdk(box.commands.run, script, envs={"FOO": "python"})).stdout == "python\n"
