"""``sudo`` in sandboxes: E2B's users have it without a password."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from e2b import CommandExitException, PtySize

if TYPE_CHECKING:
    from tests.conformance.conftest import Face


async def sh(sdk: Face, box: Any, script: str, **options: Any) -> str:
    return str((await sdk(box.commands.run, script, **options)).stdout)


async def failing(sdk: Face, box: Any, script: str, **options: Any) -> CommandExitException:
    with pytest.raises(CommandExitException) as failure:
        await sdk(box.commands.run, script, **options)
    return failure.value


async def test_root(sdk: Face, box: Any) -> None:
    assert (
        await sh(sdk, box, "sudo id -u; sudo whoami; sudo -n -- id -g; sudo pwd")
        == "0\nroot\n0\n/home/user\n"
    )
    assert await sh(sdk, box, "sudo sh -c 'echo hi > /root/made && stat -c %U /root/made'") == "root\n"
    assert await sh(sdk, box, "sudo chown user /root/made; sudo stat -c %U /root/made") == "user\n"
    assert await sh(sdk, box, "sudo sudo id -u", user="root") == "0\n"


async def test_other_users(sdk: Face, box: Any) -> None:
    assert await sh(sdk, box, "sudo -u user id -un", user="root") == "user\n"
    assert await sh(sdk, box, "sudo -u '#1000' id -un; sudo --user=nobody id -un; sudo -unobody id -un") == (
        "user\nnobody\nnobody\n"
    )
    assert await sh(sdk, box, "sudo -g sudo id -gn") == "sudo\n"
    unknown = await failing(sdk, box, "sudo -u nobodysuch true")
    assert (unknown.exit_code, unknown.stderr) == (1, "sudo: unknown user nobodysuch\n")
    refused = await failing(sdk, box, "sudo -u nobody sudo true")
    assert (refused.exit_code, refused.stderr) == (1, "nobody is not in the sudoers file.\n")


async def test_streams_and_exit_codes(sdk: Face, box: Any) -> None:
    result = await sdk(box.commands.run, "echo in | sudo tee /root/x; sudo sh -c 'echo err >&2'; exit 0")
    assert (result.stdout, result.stderr) == ("in\n", "err\n")
    assert (await failing(sdk, box, "sudo sh -c 'exit 42'")).exit_code == 42
    assert (await failing(sdk, box, "sudo sh -c 'kill -TERM $$'; exit $?")).exit_code == 143
    assert await sh(sdk, box, "head -c 3000000 /dev/zero | sudo cat | wc -c") == "3000000\n"
    missing = await failing(sdk, box, "sudo no-such-program")
    assert (missing.exit_code, missing.stderr) == (1, "sudo: no-such-program: command not found\n")
    assert (await failing(sdk, box, "sudo --nonsense")).stderr.startswith("sudo: unrecognized option")
    assert (await failing(sdk, box, "sudo")).exit_code == 1


async def test_a_script_without_an_interpreter(sdk: Face, box: Any) -> None:
    await sdk(box.files.write, "script", "echo $0 $1; id -u\n")
    assert await sh(sdk, box, "chmod +x script; sudo ./script one") == "./script one\n0\n"


async def test_the_environment_is_reset(sdk: Face, box: Any) -> None:
    assert await sh(sdk, box, "echo $FOO", envs={"FOO": "bar"}) == "bar\n"
    assert await sh(sdk, box, 'sudo echo "$FOO"; sudo printenv FOO || true') == "\n"
    assert await sh(sdk, box, "sudo printenv FOO || echo none", envs={"FOO": "bar"}) == "none\n"
    assert await sh(sdk, box, "sudo -E printenv FOO HOME", envs={"FOO": "bar"}) == "bar\n/home/user\n"
    assert await sh(sdk, box, "sudo -EH printenv FOO HOME", envs={"FOO": "bar"}) == "bar\n/root\n"
    assert await sh(sdk, box, "sudo --preserve-env=FOO printenv FOO", envs={"FOO": "bar"}) == "bar\n"
    assert await sh(sdk, box, "sudo FOO='a b' N=2 printenv FOO N") == "a b\n2\n"
    shown = await sh(sdk, box, "sudo printenv HOME USER LOGNAME SHELL SUDO_USER SUDO_UID SUDO_COMMAND PATH")
    assert shown.split("\n")[:6] == ["/root", "root", "root", "/bin/bash", "user", "1000"]
    assert shown.split("\n")[7] == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert await sh(sdk, box, "sudo printenv E2B_SANDBOX_ID") == f"{box.sandbox_id}\n"


async def test_shells(sdk: Face, box: Any) -> None:
    assert await sh(
        sdk, box, "sudo -i pwd; sudo -i echo 'a  b'; sudo -s echo 'c  d'; sudo -i echo '$HOME'"
    ) == ("/root\na  b\nc  d\n/root\n")
    assert await sh(sdk, box, "echo 'id -u; shopt -q login_shell && echo login' | sudo -i") == "0\nlogin\n"


async def test_what_needs_no_program(sdk: Face, box: Any) -> None:
    assert "NOPASSWD: ALL" in await sh(sdk, box, "sudo -l; sudo -v; sudo -k; sudo -K")
    assert await sh(sdk, box, "sudo -nkS true; sudo -b true; sudo -p secret: -n true; sudo -V") == (
        "Sudo version 1.9 (Ringfence)\n"
    )


async def test_signals_reach_the_program(sdk: Face, box: Any) -> None:
    script = "sudo sh -c 'trap \"echo got; exit 5\" TERM; echo ready; while :; do sleep 0.05; done' & "
    script += "p=$!; sleep 0.4; kill -TERM $p; wait $p; echo $?"
    assert await sh(sdk, box, script) == "ready\ngot\n5\n"


async def test_nothing_outlives_a_killed_sudo(sdk: Face, box: Any) -> None:
    handle = await sdk(box.commands.run, "sudo sleep 6543", background=True)
    await sdk(box.commands.run, "until pgrep -f '^sleep 6543' >/dev/null; do sleep 0.05; done", user="root")
    await sdk(handle.kill)
    await sdk(box.commands.run, "while pgrep -f '^sleep 6543' >/dev/null; do sleep 0.05; done", user="root")


async def test_in_cells(sdk: Face, box: Any) -> None:
    execution = await sdk(box.run_code, "!sudo id -un")
    assert "".join(execution.logs.stdout).strip() == "root"


async def test_on_a_terminal(sdk: Face, box: Any) -> None:
    said = bytearray()
    if sdk.name == "sync":
        terminal = await sdk(box.pty.create, PtySize(rows=24, cols=80))
    else:
        terminal = await box.pty.create(PtySize(rows=24, cols=80), on_data=said.extend)
    script = "test -t 0 && test -t 1 && read x </dev/tty && echo got-$x-$(id -u); stty size"
    await sdk(box.pty.send_stdin, terminal.pid, f"sudo sh -c '{script}'; exit 9\n".encode())
    await asyncio.sleep(1)
    await sdk(box.pty.send_stdin, terminal.pid, b"typed\n")
    with pytest.raises(CommandExitException) as ended:
        await sdk(terminal.wait, **({"on_pty": said.extend} if sdk.name == "sync" else {}))
    assert ended.value.exit_code == 9
    assert b"got-typed-0" in said
    assert b"24 80" in said


async def test_many_at_once(sdk: Face, box: Any) -> None:
    script = 'for i in $(seq 30); do sudo sh -c "echo $i" & done; wait'
    assert sorted((await sh(sdk, box, script)).split(), key=int) == [str(n) for n in range(1, 31)]


async def test_rubbish_on_the_socket(sdk: Face, box: Any) -> None:
    code = """
import socket
for sent in (b"", b"x", bytes(100), b"\\0" * 2, b"zzz\\0\\0", b"atrue\\0\\0"):
    s = socket.socket(socket.AF_UNIX); s.connect("/run/ringfence/sudo.sock")
    if sent: s.sendall(sent)
    s.shutdown(socket.SHUT_WR); print(s.recv(200)[:6])
"""
    execution = await sdk(box.run_code, code)
    assert execution.error is None
    assert set("".join(execution.logs.stdout).split("\n")) <= {"b'esudo:'", ""}
    assert await sh(sdk, box, "sudo id -u") == "0\n"
