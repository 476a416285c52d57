"""What every process of a sandbox finds: E2B's variables and files, host name, services on loopback."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from e2b import CommandExitException

if TYPE_CHECKING:
    from tests.conformance.conftest import Face

ROOT = "root" if os.geteuid() == 0 else "user"
"""Who the sandbox's root is: under the engine of an ordinary user there is one id only."""
SHOW = "echo $E2B_SANDBOX $E2B_SANDBOX_ID $E2B_TEMPLATE_ID"


async def test_e2b_variables_in_commands(sdk: Face, box: Any) -> None:
    info = await sdk(box.get_info)
    expected = f"true {box.sandbox_id} {info.template_id}\n"
    assert (await sdk(box.commands.run, SHOW)).stdout == expected
    assert (await sdk(box.commands.run, SHOW, user="root")).stdout == expected


async def test_e2b_variables_in_cells(sdk: Face, box: Any) -> None:
    info = await sdk(box.get_info)
    code = "import os; print(*(os.environ[n] for n in ('E2B_SANDBOX', 'E2B_SANDBOX_ID', 'E2B_TEMPLATE_ID')))"
    execution = await sdk(box.run_code, code)
    assert execution.logs.stdout == [f"true {box.sandbox_id} {info.template_id}\n"]
    execution = await sdk(box.run_code, SHOW, language="bash")
    assert execution.logs.stdout == [f"true {box.sandbox_id} {info.template_id}\n"]


async def test_a_request_cannot_change_them(sdk: Face, make: Callable[..., Any]) -> None:
    lies = {"E2B_SANDBOX": "no", "E2B_SANDBOX_ID": "other", "E2B_TEMPLATE_ID": "other", "OWN": "1"}
    box = await make(envs=lies)
    info = await sdk(box.get_info)
    shown = await sdk(box.commands.run, f"{SHOW} $OWN")
    assert shown.stdout == f"true {box.sandbox_id} {info.template_id} 1\n"
    execution = await sdk(box.run_code, "import os; print(os.environ['E2B_SANDBOX_ID'], os.environ['OWN'])")
    assert execution.logs.stdout == [f"{box.sandbox_id} 1\n"]


@pytest.mark.not_under_gvisor("Debian 12's runsc does not know a flag that stat of coreutils uses")
async def test_e2b_files(sdk: Face, box: Any) -> None:
    info = await sdk(box.get_info)
    read = {
        name: await sdk(box.files.read, f"/run/e2b/.E2B_{name}")
        for name in ("SANDBOX", "SANDBOX_ID", "TEMPLATE_ID")
    }
    assert read == {"SANDBOX": "true", "SANDBOX_ID": box.sandbox_id, "TEMPLATE_ID": info.template_id}
    modes = (await sdk(box.commands.run, "stat -c '%a %U' /run/e2b/.E2B_*")).stdout.split("\n")[:-1]
    assert modes == ["444 root"] * 3


@pytest.mark.not_under_gvisor("Debian 12's runsc does not know a flag that stat of coreutils uses")
async def test_who_and_where(sdk: Face, box: Any) -> None:
    script = "hostname; uname -n; cat /etc/hostname; getent hosts $(hostname) | wc -l; echo $SHELL; umask"
    name, kernel_name, file_name, *rest = (await sdk(box.commands.run, script)).stdout.split()
    assert name == kernel_name == file_name
    assert rest == ["1", "/bin/bash", "0022"]
    assert (await sdk(box.commands.run, "stat -c '%U:%G %a' ~")).stdout == "user:user 755\n"
    assert (await sdk(box.commands.run, "stat -c %a /usr/local /code")).stdout == "777\n777\n"


async def test_services_on_loopback(sdk: Face, box: Any) -> None:
    show = "curl -s -o /dev/null -w '%{http_code}' localhost"
    assert (await sdk(box.commands.run, f"{show}:49999/health")).stdout == "200"
    assert (await sdk(box.commands.run, f"{show}:49983/health")).stdout == "204"
    assert (await sdk(box.commands.run, f"{show}:49983/envs")).stdout == "401"
    with_token = f'{show}:49983/envs -H "X-Access-Token: $TOKEN"'
    answer = await sdk(box.commands.run, with_token, envs={"TOKEN": box._envd_access_token})
    assert answer.stdout == "200"


async def test_tools_are_there(sdk: Face, box: Any) -> None:
    found = await sdk(box.commands.run, "command -v bash python3 pip git curl tar gzip sudo env id")
    assert len(found.stdout.split()) == 10


async def test_randomness_differs(sdk: Face, make: Callable[..., Any]) -> None:
    code = "import random, uuid, os; (random.random(), uuid.uuid4().hex, os.urandom(8))"
    first, second = await make(), await make()
    assert (await sdk(first.run_code, code)).text != (await sdk(second.run_code, code)).text


async def test_a_sandbox_outlives_the_end_of_all_its_processes(sdk: Face, box: Any) -> None:
    for _ in range(2):
        await sdk(box.run_code, "x = 1")
        with contextlib.suppress(CommandExitException):  # its own shell ends, too
            await sdk(box.commands.run, "sudo kill -9 -1")
        lost = (await sdk(box.run_code, "x")).error
        assert lost.name in ("KernelDied", "NameError")  # whether the cell came before the news or after
        assert (await sdk(box.run_code, "1 + 1")).text == "2"
        context = await sdk(box.create_code_context)
        assert (await sdk(box.run_code, "2 + 2", context=context)).text == "4"
        assert (await sdk(box.commands.run, "echo alive")).stdout == "alive\n"


async def test_processes_see_each_other(sdk: Face, box: Any) -> None:
    server = await sdk(box.commands.run, "sleep 1001", background=True)
    guarded = await sdk(box.commands.run, "sleep 1002", background=True, user="root")
    await sdk(box.run_code, "import subprocess; child = subprocess.Popen(['sleep', '1003'])")
    for user in ("user", "root"):
        seen = (await sdk(box.commands.run, "ps -eo user:9,args", user=user)).stdout.split("\n")
        lines = {" ".join(line.split()) for line in seen}
        assert {"user sleep 1001", f"{ROOT} sleep 1002", "user sleep 1003", "user ipykernel"} <= lines
        assert not [line for line in lines if "ringfence" in line]
    cell = await sdk(box.run_code, f"import os; os.path.exists('/proc/{server.pid}/stat')")
    assert cell.text == "True"
    await sdk(box.commands.run, "pkill -f 'sleep 100[13]$'")
    gone = await sdk(
        box.commands.run, f"kill -0 {server.pid} || echo gone; kill -0 {guarded.pid}", user="root"
    )
    assert gone.stdout == "gone\n"
    assert (await sdk(box.run_code, "child.wait()")).text == "-15"


@pytest.mark.not_under_gvisor("its first process is seen by all")
async def test_the_process_that_serves_a_sandbox_is_out_of_sight(sdk: Face, box: Any) -> None:
    for user in ("user", "root"):
        shown = await sdk(box.commands.run, "ls -A /proc/1 | wc -l; ps -p 1 -o pid= || true", user=user)
        assert shown.stdout == "0\n"
    # Nothing of the nursery's can be opened that is not for everybody.
    place = "/proc/$(pgrep -o ipykernel)"
    look = f"for f in mem maps environ fd/0; do head -c1 {place}/$f && echo open; done"
    await sdk(box.run_code, "1")
    assert "open" not in (await sdk(box.commands.run, f"{look}; true", user="root")).stdout
