"""A guest that was taken over says what it likes on every channel it holds. Only its own sandbox may end."""

import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringfence.core.ids import new_sandbox_id
from ringfence.engine.engine import Engine
from ringfence.engine.isolation import linux
from ringfence.engine.model import Sandbox, SandboxSpec
from ringfence.engine.proof.guest_client import run_program
from ringfence.engine.zygote import channel

TEMPLATE = "base"
PIDFD_GETFD = 438
LIBC = ctypes.CDLL(None, use_errno=True)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may take descriptors from a guest")

HOSTILE = [
    b"\xff\xfe",
    b"null",
    b"[]",
    b"{}",
    b'"pid"',
    b"[" * 100_000,
    b'{"a":' * 20_000,
    b"9" * 10_000,
    b'{"op":"name","id":1e999,"name":"a"}',
    b'{"op":"name","id":NaN,"name":"a"}',
    b'{"op":"name","id":[],"name":{}}',
    b'{"op":"open","host":"a","port":"x","ok":"\\u2028","no":"","head":""}',
    b'{"op":"fork"}',
    b'{"disk":true}',
    b'{"error":"x"}',
    b'{"ready":true}',
    b"x" * channel.MAX_PACKET,
]


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host that no sandbox may end."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


@contextlib.contextmanager
def channels_of(sandbox: Sandbox) -> Iterator[list[socket.socket]]:
    """Duplicates of the packet sockets that PID 1 of a sandbox holds."""
    with contextlib.ExitStack() as stack:
        found = []
        for fd in duplicates(sandbox, "socket:"):
            one = stack.enter_context(socket.socket(fileno=fd))
            if one.type & 0xF == socket.SOCK_SEQPACKET:
                one.setblocking(False)
                found.append(one)
        yield found


@contextlib.contextmanager
def words_of(sandbox: Sandbox) -> Iterator[int]:
    """A duplicate of the pipe in which PID 1 of a sandbox answers the launcher."""
    pipes = duplicates(sandbox, "pipe:")
    [words] = [fd for fd in pipes if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT]
    try:
        yield words
    finally:
        channel.close_all(pipes)


def duplicates(sandbox: Sandbox, kind: str) -> list[int]:
    pidfd = linux.pidfd_open(sandbox.pid)
    found = []
    try:
        for name in os.listdir(f"/proc/{sandbox.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                if os.readlink(f"/proc/{sandbox.pid}/fd/{name}").startswith(kind):
                    found.append(LIBC.syscall(PIDFD_GETFD, pidfd, int(name), 0))
    finally:
        os.close(pidfd)
    return [fd for fd in found if fd >= 0]


def write(words: int, data: bytes) -> None:
    with contextlib.suppress(BlockingIOError):
        os.write(words, data)


def say(one: socket.socket, data: bytes, fds: int = 0) -> None:
    with contextlib.suppress(OSError):
        socket.send_fds(one, [data], [0] * fds)


async def works(engine: Engine, sandbox: Sandbox) -> bool:
    async with contextlib.aclosing(run_program(sandbox, "", "user", ["-c", "print(6 * 7)"])) as output:
        return b"".join([data async for data in output]) == b"42\n" and not engine.ended.is_set()


async def test_nothing_that_a_guest_says_hurts_others(
    engine: Engine, bystander: subprocess.Popen[bytes]
) -> None:
    other = await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE))
    pid = json.dumps({"pid": bystander.pid}).encode()
    for data in [*HOSTILE, pid]:
        victim = await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE))
        with channels_of(victim) as channels, words_of(victim) as words:
            write(words, data)
            assert len(channels) >= 3, "the lifeline, the nursery, the egress"
            for one in channels:
                say(one, data)
                say(one, data, fds=20)
        await asyncio.wait_for(engine.kill(victim.sandbox_id), 30)
        assert bystander.poll() is None, data[:40]
        assert await works(engine, other), data[:40]
    await engine.kill(other.sandbox_id)


async def test_a_guest_that_says_a_pid_to_the_launcher_loses_its_own_sandbox(
    engine: Engine, bystander: subprocess.Popen[bytes]
) -> None:
    ended = asyncio.get_running_loop().create_future()
    engine.add_exit_listener(lambda exit_: ended.done() or ended.set_result(exit_))
    victim = await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE))
    with words_of(victim) as words:
        write(words, json.dumps({"pid": bystander.pid}).encode())
    exit_ = await asyncio.wait_for(ended, 30)
    assert exit_.sandbox_id == victim.sandbox_id
    assert "no guest says" in exit_.detail
    assert bystander.poll() is None


@contextlib.contextmanager
def lingering() -> Iterator[socket.socket]:
    """A TCP connection that keeps its last user waiting for an hour, until the other side has gone."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
        with peer, client:
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    client.send(bytes(1 << 20))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
            yield client


def give_away(one: socket.socket, data: bytes, connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.send_fds(one, [data], [connection.fileno()])
    connection.close()


@contextlib.contextmanager
def nested() -> Iterator[socket.socket]:
    """A socket in whose queue lies another one, in whose queue lies one that lingers."""
    with contextlib.ExitStack() as stack:
        given = stack.enter_context(lingering())
        for _ in range(2):
            ours, theirs = channel.pair()
            stack.enter_context(theirs)
            with ours:
                give_away(ours, b"x", given)
            given = theirs
        yield given


OPEN = b'{"op":"open","host":"a","port":1,"ok":"","no":"","head":"","lend":1}'


@pytest.mark.parametrize("kind", [lingering, nested])
async def test_a_socket_that_lingers_keeps_nobody_waiting(
    engine: Engine, kind: Callable[[], contextlib.AbstractContextManager[socket.socket]]
) -> None:
    other = await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE))
    for data in (b"{}", b"\xff", OPEN):
        victim = await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE))
        with channels_of(victim) as channels, contextlib.ExitStack() as stack:
            for one in [*channels, *channels]:
                connection = stack.enter_context(kind())
                # Whoever receives it is its last user; should we be that, a thread waits, which hurts nobody.
                giving = threading.Thread(target=give_away, args=(one, data, connection), daemon=True)
                giving.start()
                await asyncio.to_thread(giving.join, 1)
            assert await asyncio.wait_for(engine.network_account(other.sandbox_id), 10)
            await asyncio.wait_for(engine.kill(victim.sandbox_id), 30)
    assert await asyncio.wait_for(works(engine, other), 30)
    await engine.kill(other.sandbox_id)


def refuses_all(one: socket.socket) -> bool:
    try:
        socket.send_fds(one, [b"{}"], [0])
    except BrokenPipeError:
        return True
    return False


async def test_a_guest_can_send_the_launcher_no_descriptor_and_have_few_nurseries(engine: Engine) -> None:
    victim = await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE))
    assert await works(engine, victim)
    os.kill(victim.pid, signal.SIGSTOP)  # or it would read what is answered
    with channels_of(victim) as channels, words_of(victim) as words:
        [lifeline] = [one for one in channels if refuses_all(one)]  # the others lead elsewhere
        answers = []
        async with asyncio.timeout(30):
            while len(answers) < 100:
                write(words, b"nursery")
                with contextlib.suppress(BlockingIOError):
                    message, fds = channel.receive(lifeline)
                    channel.close_all(fds)
                    answers.append((message["nursery"], len(fds)))
                await asyncio.sleep(0)
    assert set(answers) == {(True, 1), (False, 0)}
    assert answers.count((True, 1)) < 60
    assert not engine.ended.is_set()
    await engine.kill(victim.sandbox_id)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_a_packet_is_a_message_or_a_value_error_and_leaves_nothing_open(data: bytes) -> None:
    ours, theirs = channel.pair()
    with ours, theirs:
        socket.send_fds(theirs, [data or b" "], [0, 0])
        before = len(os.listdir("/proc/self/fd"))
        try:
            message, fds = channel.receive(ours)
        except ValueError:
            assert len(os.listdir("/proc/self/fd")) == before
        else:
            assert isinstance(message, dict)
            assert len(fds) == 2
            channel.close_all(fds)
