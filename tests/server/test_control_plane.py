"""The control plane through the official SDK, synchronous and asynchronous."""

from __future__ import annotations

import asyncio
import datetime
import time
import uuid
from typing import TYPE_CHECKING

import httpx
import pytest
from e2b import AuthenticationException, NotFoundException, SandboxException, SandboxQuery, SandboxState
from e2b_code_interpreter import AsyncSandbox, Sandbox

if TYPE_CHECKING:
    from conftest import RunningServer


def test_create_with_each_template(server: RunningServer) -> None:
    for template in server.templates:
        sandbox = Sandbox.create(template, **server.options)
        try:
            assert sandbox.is_running()
            assert sandbox.commands.run("echo hello").stdout == "hello\n"
            info = sandbox.get_info()
            assert info.name == template
            assert info.state == SandboxState.RUNNING
            assert info.cpu_count >= 1
            assert info.memory_mb > 0
        finally:
            assert sandbox.kill()


def test_no_template_named_is_the_code_interpreter(server: RunningServer) -> None:
    if "code-interpreter-v1" not in server.templates:
        pytest.skip("RINGFENCE_TEST_TEMPLATES leaves it out")
    with Sandbox.create(**server.options) as sandbox:
        assert sandbox.get_info().name == "code-interpreter-v1"
        assert (
            sandbox.run_code("import pandas; pandas.DataFrame({'a': [1, 2]}).a.sum()").text == "np.int64(3)"
        )


async def test_create_asynchronously(server: RunningServer) -> None:
    async with await AsyncSandbox.create("base", **server.options) as sandbox:
        execution = await sandbox.run_code("1 + 1")
        assert execution.text == "2"
    assert not await sandbox.is_running()


def test_the_context_manager_kills(server: RunningServer) -> None:
    with Sandbox.create("base", **server.options) as sandbox:
        assert sandbox.is_running()
    assert not sandbox.is_running()
    assert not sandbox.kill()


def test_an_unknown_template(server: RunningServer) -> None:
    with pytest.raises(SandboxException, match="template 'no-such' not found"):
        Sandbox.create("no-such", **server.options)


def test_metadata_and_envs(server: RunningServer) -> None:
    given = {"user": "a b&c=d", "é": "100%+"}
    with Sandbox.create("base", metadata=given, envs={"GREETING": "hi there"}, **server.options) as sandbox:
        assert sandbox.get_info().metadata == given
        assert sandbox.commands.run('echo "$GREETING"').stdout == "hi there\n"
        assert sandbox.run_code("import os; os.environ['GREETING']").text == "hi there"
        found = Sandbox.list(SandboxQuery(metadata=given), **server.options).next_items()
        assert [item.sandbox_id for item in found] == [sandbox.sandbox_id]
        other = SandboxQuery(metadata={**given, "user": "x"})
        assert Sandbox.list(other, **server.options).next_items() == []


def test_list_pages_order_and_filters(server: RunningServer) -> None:
    tag = {"tag": uuid.uuid4().hex}
    made = [Sandbox.create("base", metadata=tag, **server.options) for _ in range(3)]
    ids = [sandbox.sandbox_id for sandbox in made]
    try:
        pages = Sandbox.list(SandboxQuery(metadata=tag), limit=2, **server.options)
        first = pages.next_items()
        assert pages.has_next
        second = pages.next_items()
        assert not pages.has_next
        assert [item.sandbox_id for item in first + second] == ids[::-1]

        rising = Sandbox.list(SandboxQuery(metadata=tag), order="asc", **server.options).next_items()
        assert [item.sandbox_id for item in rising] == ids

        since = SandboxQuery(metadata=tag, started_after=rising[1].started_at)
        assert len(Sandbox.list(since, **server.options).next_items()) == 2
        paused = SandboxQuery(metadata=tag, state=[SandboxState.PAUSED])
        assert Sandbox.list(paused, **server.options).next_items() == []
        for name, count in (("base", 3), (rising[0].template_id, 3), ("no-such", 0)):
            query = SandboxQuery(metadata=tag, template=name)
            assert len(Sandbox.list(query, **server.options).next_items()) == count
    finally:
        for sandbox in made:
            sandbox.kill()


def test_the_default_timeouts_and_set_timeout(server: RunningServer) -> None:
    with Sandbox.create("base", **server.options) as sandbox:
        info = sandbox.get_info()
        assert info.end_at - info.started_at == datetime.timedelta(seconds=300)
        sandbox.set_timeout(20)
        shorter = sandbox.get_info().end_at
        assert shorter < info.end_at
        sandbox.set_timeout(600)
        assert sandbox.get_info().end_at > info.end_at


def test_connect_extends_but_never_shortens(server: RunningServer) -> None:
    with Sandbox.create("base", timeout=120, **server.options) as sandbox:
        before = sandbox.get_info().end_at
        same = Sandbox.connect(sandbox.sandbox_id, timeout=10, **server.options)
        assert same.get_info().end_at == before
        assert same.commands.run("echo connected").stdout == "connected\n"
        Sandbox.connect(sandbox.sandbox_id, timeout=1000, **server.options)
        assert sandbox.get_info().end_at > before


async def test_a_sandbox_ends_at_its_timeout(server: RunningServer) -> None:
    sandbox = await AsyncSandbox.create("base", timeout=1, **server.options)
    deadline = time.monotonic() + 30
    while await sandbox.is_running():
        assert time.monotonic() < deadline
    with pytest.raises(NotFoundException):
        await sandbox.get_info()


def test_a_timeout_of_zero_ends_it_now(server: RunningServer) -> None:
    sandbox = Sandbox.create("base", **server.options)
    sandbox.set_timeout(0)
    assert not sandbox.is_running()


@pytest.mark.parametrize("timeout", [0, -1, 86_401])
def test_impossible_timeouts(server: RunningServer, timeout: int) -> None:
    with pytest.raises(SandboxException, match="400"):
        Sandbox.create("base", timeout=timeout, **server.options)


def test_a_wrong_key(server: RunningServer) -> None:
    with pytest.raises(AuthenticationException):
        Sandbox.create(**{**server.options, "api_key": "e2b_" + "0" * 40})


def test_what_another_owner_made_does_not_exist(server: RunningServer) -> None:
    with Sandbox.create("base", **server.options) as sandbox:
        name = sandbox.sandbox_id
        assert not Sandbox.kill(name, **server.stranger_options)
        for operation in (Sandbox.connect, Sandbox.get_info):
            with pytest.raises(NotFoundException):
                operation(name, **server.stranger_options)
        with pytest.raises(NotFoundException):
            Sandbox.set_timeout(name, 10, **server.stranger_options)
        listed = Sandbox.list(**server.stranger_options).next_items()
        assert name not in [item.sandbox_id for item in listed]
        assert sandbox.is_running()


def test_an_unknown_sandbox(server: RunningServer) -> None:
    name = "inosuchsandbox0000000000"
    assert not Sandbox.kill(name, **server.options)
    with pytest.raises(NotFoundException):
        Sandbox.get_info(name, **server.options)
    with pytest.raises(NotFoundException):
        Sandbox.connect(name, **server.options)


def test_metrics_soon_after_the_start(server: RunningServer) -> None:
    with Sandbox.create("base", **server.options) as sandbox:
        deadline = time.monotonic() + 30
        while not (points := sandbox.get_metrics()):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert points[0].mem_used > 0
        assert points[0].mem_total == sandbox.get_info().memory_mb << 20
        long_ago = datetime.datetime.now() - datetime.timedelta(hours=2)
        assert sandbox.get_metrics(start=long_ago, end=long_ago + datetime.timedelta(hours=1)) == []


def test_an_idempotency_key_makes_one_sandbox(server: RunningServer) -> None:
    key = uuid.uuid4().hex
    one = Sandbox.create("base", idempotency_key=key, **server.options)
    two = Sandbox.create("base", idempotency_key=key, **server.options)
    try:
        assert one.sandbox_id == two.sandbox_id
        with pytest.raises(SandboxException, match="422"):
            Sandbox.create("base", metadata={"a": "b"}, idempotency_key=key, **server.options)
    finally:
        one.kill()


async def test_many_at_once_and_nothing_stays(server: RunningServer) -> None:
    tag = {"tag": uuid.uuid4().hex}

    async def one() -> str:
        async with await AsyncSandbox.create("base", metadata=tag, **server.options) as sandbox:
            return (await sandbox.commands.run("echo done")).stdout

    assert await asyncio.gather(*(one() for _ in range(10))) == ["done\n"] * 10
    query = SandboxQuery(metadata=tag)
    assert await AsyncSandbox.list(query, **server.options).next_items() == []


def test_health_says_the_level_to_everybody_and_the_rest_to_key_holders(server: RunningServer) -> None:
    body = httpx.get(f"{server.url}/health", headers={"X-API-KEY": server.key}).json()
    assert body["status"] == "ok"
    assert body["templates"] == server.templates
    assert body["isolation"]["gvisor"].pop("starts").keys() == {"restored", "cold", "images_in_the_making"}
    assert body["isolation"] == server.isolation
    assert body["network"]["default"] == "internet"
    brief = {name: body["isolation"][name] for name in ("level", "tier")}
    for headers in ({}, {"X-API-KEY": "e2b_" + "0" * 40}):
        told = httpx.get(f"{server.url}/health", headers=headers).json()
        assert told == {
            "status": "ok", "version": body["version"], "backend": "local", "isolation": brief
        }  # fmt: skip
