"""Properties: files with hostile names, and processes in random order, each against a simple model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from e2b import CommandExitException
from e2b_code_interpreter import Sandbox
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, rule, run_state_machine_as_test

if TYPE_CHECKING:
    from tests.conftest import RunningServer

QUICK = settings(
    max_examples=40, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip

# What a path's component may not be for the kernel: empty, a dot or two, longer than 255 bytes, NUL, slash.
CHARACTERS = st.characters(exclude_characters="/\0", exclude_categories=("Cs",))
TRICKY = st.sampled_from(
    [
        *(
            "-rf",
            "--",
            "a b",
            " a",
            "a ",
            "a\nb",
            "a\rb",
            "tab\there",
            "'",
            '"',
            "\\",
            "$(id)",
            "`id`",
            "a;b",
        ),
        *("*", "?", "%2e%2e", "%2F", "%00", "a+b", "a&b=c", "#a", "~", "~root", "...", "..a", "C:\\a", "="),
        *("\u202eabc", "e\u0301", "\u00e9", "\ufeff", "\x7f", "\x1b[31m", "\u2028", "ž" * 127, "a" * 255),
        *(".hidden", "<script>", "{}", "nul"),
    ]
)
NAMES = st.one_of(TRICKY, st.text(CHARACTERS, min_size=1, max_size=60)).filter(
    lambda name: name not in (".", "..") and len(name.encode()) <= 255
)
CONTENTS = st.one_of(st.binary(max_size=2000), st.sampled_from([b"", b"\xff\xfe", b"\r\n" * 9, b"--b--\r\n"]))


@pytest.fixture(scope="module")
def shared(server: RunningServer) -> Iterator[Sandbox]:
    """One sandbox for all examples."""
    box = Sandbox.create("base", timeout=600, **server.options)
    yield box
    box.kill()


@given(name=NAMES, other=NAMES, content=CONTENTS)
@QUICK
def test_files_with_any_name(shared: Sandbox, name: str, other: str, content: bytes) -> None:
    files, top = shared.files, "/home/user/names"
    files.remove(top)
    path = f"{top}/{name}/{name}"
    written = files.write(path, content)
    assert (written.path, written.name) == (path, name)
    assert bytes(files.read(path, format="bytes")) == content
    info = files.get_info(path)
    assert (info.path, info.name, info.size) == (path, name, len(content))
    assert [entry.path for entry in files.list(top, depth=2)] == [f"{top}/{name}", path]
    moved = files.rename(path, f"{top}/{name}/{other[:60]}x")
    assert files.exists(moved.path)
    assert bytes(files.read(moved.path, format="bytes")) == content
    files.write(moved.path, content[::-1], use_octet_stream=True)
    assert bytes(files.read(moved.path, format="bytes")) == content[::-1]
    assert files.make_dir(f"{top}/dir/{name}") is True
    assert files.make_dir(f"{top}/dir/{name}") is False
    files.remove(f"{top}/{name}")
    assert [entry.name for entry in files.list(top)] == ["dir"]


@given(text=st.text(CHARACTERS | st.just("/"), max_size=300), variable=st.text(CHARACTERS, max_size=100))
@QUICK
def test_commands_get_any_text(shared: Sandbox, text: str, variable: str) -> None:
    handle = shared.commands.run('cat; printf "|%s" "$V"', background=True, stdin=True, envs={"V": variable})
    shared.commands.send_stdin(handle.pid, text)
    shared.commands.close_stdin(handle.pid)
    assert handle.wait().stdout == f"{text}|{variable}"


class Processes(RuleBasedStateMachine):
    """Starts, feeds, lists and ends processes in any order; `live` is what must be there."""

    box: Sandbox
    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, str] = {}

    @rule(target=running, prefix=st.sampled_from(["", "exec "]))
    def start(self, prefix: str) -> Any:
        handle = self.box.commands.run(f"{prefix}cat", background=True, stdin=True)
        assert handle.pid not in self.live
        self.live[handle.pid] = ""
        return handle

    @rule(handle=running, text=st.text("abc\n", min_size=1, max_size=20))
    def feed(self, handle: Any, text: str) -> None:
        self.box.commands.send_stdin(handle.pid, text)
        self.live[handle.pid] += text

    @rule()
    def look(self) -> None:
        assert {process.pid for process in self.box.commands.list()} == set(self.live)

    @rule(handle=running)
    def connect(self, handle: Any) -> None:
        other = self.box.commands.connect(handle.pid)
        assert other.pid == handle.pid
        other.disconnect()

    @rule(handle=consumes(running))
    def finish(self, handle: Any) -> None:
        self.box.commands.close_stdin(handle.pid)
        assert handle.wait().stdout == self.live.pop(handle.pid)
        assert self.box.commands.kill(handle.pid) is False

    @rule(handle=consumes(running))
    def kill(self, handle: Any) -> None:
        assert self.box.commands.kill(handle.pid) is True
        with pytest.raises(CommandExitException):
            handle.wait()
        del self.live[handle.pid]
        assert self.box.commands.kill(handle.pid) is False

    def teardown(self) -> None:
        for pid in self.live:
            self.box.commands.kill(pid)
        while self.box.commands.list():
            pass


def test_processes_in_any_order(shared: Sandbox) -> None:
    machine = type("Machine", (Processes,), {"box": shared})
    run_state_machine_as_test(machine, settings=settings(QUICK, max_examples=12, stateful_step_count=15))
