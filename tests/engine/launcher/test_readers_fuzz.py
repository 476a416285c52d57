"""Whatever a process of a template, of a volume or of gVisor says, its reader takes it for what it is."""

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.core.errors import LauncherError, RingfenceError, VolumeError
from ringfence.engine.gvisor import warden
from ringfence.engine.launcher.helpers import MAX_ANSWER, result_of
from ringfence.engine.launcher.templates import report_of
from ringfence.engine.process_link import ProcessLink
from ringfence.engine.volumes.client import VolumeAgent
from ringfence.engine.zygote import channel
from ringfence.guest.interpreter.saved import MAGIC, read_contexts

WORDS = """result error bytes entries report modules failed threads entry done reply kind event contexts
    version id language cwd default lost state"""
KEYS = st.sampled_from(sorted(set(WORDS.split())))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=15,
)
SAID = st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode())
MANY = settings(max_examples=60, deadline=None)


@MANY
@given(SAID)
def test_a_helpers_answer_is_numbers_nothing_or_an_error(data: bytes) -> None:
    check_result(data[:MAX_ANSWER])


@pytest.mark.parametrize(
    "data",
    [b"[" * MAX_ANSWER, b"[1]", b"7", b'{"result": {}}', b'{"result": {"bytes": 1e999, "entries": 1}}'],
)
def test_a_helper_that_was_taken_over(data: bytes) -> None:
    check_result(data)


def check_result(data: bytes) -> None:
    answer, end = os.pipe()
    os.write(end, data)
    os.close(end)
    result = result_of(answer)
    if "error" in result:
        assert isinstance(result["error"], str)
        assert result["error"]
    elif result["result"] is not None:
        assert min(result["result"]["bytes"], result["result"]["entries"]) >= 0


REPORT = st.fixed_dictionaries(
    {"modules": st.lists(JSON, max_size=5), "failed": st.dictionaries(st.text(), JSON), "threads": JSON}
)


@MANY
@given(st.dictionaries(KEYS, JSON, max_size=3) | st.fixed_dictionaries({"report": REPORT}))
def test_a_zygotes_report_always_fits_an_answer(message: dict[str, Any]) -> None:
    check_report(message)


def test_a_zygotes_report_that_is_too_large() -> None:
    long = "\u00e9" * 60_000
    check_report({"report": {"modules": [long] * 99, "failed": {long: long}, "threads": 10**400}})
    names = {f"{number}{long}": long for number in range(99)}
    check_report({"report": {"modules": [[float("inf")]], "failed": names, "threads": 1}})


def check_report(message: dict[str, Any]) -> None:
    report = report_of(message)
    if report is None:
        return
    ours, theirs = channel.pair()
    with ours, theirs:
        channel.send(ours, {"reply": 1, "report": report})
        assert channel.receive(theirs)[0]["report"] == report


@MANY
@given(SAID)
def test_what_a_guest_in_gvisor_says_is_an_object(data: bytes) -> None:
    ours, theirs = channel.pair()
    with ours, theirs:
        theirs.send(data or b" ")
        assert isinstance(warden.receive(ours), dict)


@MANY
@given(st.lists(SAID, max_size=3), st.sampled_from(["entry", "list", "remove"]))
def test_a_volumes_agent_that_was_taken_over(answers: list[bytes], operation: str) -> None:
    async def ask() -> None:
        ours, theirs = channel.pair()
        with ours, theirs:
            ours.setblocking(False)
            agent = VolumeAgent(ours)
            calls: dict[str, Callable[[], Awaitable[Any]]] = {
                "entry": lambda: agent.entry("stat", path="/a"),
                "list": lambda: agent.list("/", 1),
                "remove": lambda: agent.remove("/a"),
            }
            asked = asyncio.ensure_future(calls[operation]())
            await asyncio.sleep(0)
            _, (reply,) = channel.receive(theirs)
            with socket.socket(fileno=reply) as end:
                for data in answers:
                    socket.send_fds(end, [data or b" "], [0])
            try:
                result = await asked
            except VolumeError:
                return
            assert result is None or isinstance(result, dict) or all(isinstance(one, dict) for one in result)

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(ask())
    assert len(os.listdir("/proc/self/fd")) == before


@MANY
@given(st.lists(SAID, max_size=3))
def test_a_link_survives_what_its_process_says(said: list[bytes]) -> None:
    async def talk() -> None:
        ours, theirs = channel.pair()
        ours.setblocking(False)
        process = await asyncio.create_subprocess_exec("true")
        link = ProcessLink(ours, process, "process", stop_seconds=10)
        with theirs:
            asked = asyncio.ensure_future(link.call("verb"))
            await asyncio.sleep(0)
            for data in said:
                theirs.send(data or b" ")
            theirs.send(b'{"reply": 1}')
            try:
                assert (await asked)["reply"] == 1
            except RingfenceError:
                return  # one of them was an answer, an error, or ended it
            finally:
                await link.aclose()
            with pytest.raises(LauncherError):
                await link.call("verb")

    asyncio.run(talk())


@MANY
@given(st.binary(max_size=100), JSON, st.integers(0, 1 << 64))
def test_saved_contexts_are_ones_or_a_value_error(before: bytes, table: Any, size: int) -> None:
    body = json.dumps({"version": 1, "contexts": table}).encode()
    for length in (len(body), size % (1 << 64)):
        descriptor = os.memfd_create("states")
        try:
            os.write(descriptor, before + body + length.to_bytes(8, "little") + MAGIC)
            read_contexts(descriptor)
        except ValueError:
            pass
        finally:
            os.close(descriptor)


ROW = {"id": "a", "language": "python", "cwd": "/", "default": True, "lost": False}


@pytest.mark.parametrize("state", [[1e999, 1], ["1e5", 2], [[], {}], {"a": 1}, [0, 1 << 70]])
def test_a_saved_context_somewhere_else(state: Any) -> None:
    body = json.dumps({"version": 1, "contexts": [{**ROW, "state": state}]}).encode()
    descriptor = os.memfd_create("states")
    os.write(descriptor, body + len(body).to_bytes(8, "little") + MAGIC)
    with pytest.raises(ValueError, match=r"."):
        read_contexts(descriptor)
    os.close(descriptor)
