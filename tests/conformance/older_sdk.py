"""What a program does with the SDK; run by `test_conformance_older_sdk` in that SDK's environment."""

import asyncio
import os
import threading
import time
from importlib.metadata import version

from e2b_code_interpreter import AsyncSandbox, Sandbox


def refused(call, kind: str, text: str = "") -> None:
    try:
        call()
    except Exception as error:
        assert type(error).__name__ == kind, error
        assert text in str(error), error
    else:
        raise AssertionError(f"{kind} was expected")


def code(box: Sandbox) -> None:
    box.run_code("x = 1")
    assert box.run_code("x + 1").text == "2"
    assert box.run_code("1 / 0").error.name == "ZeroDivisionError"
    said = []
    box.run_code("print('out')", on_stdout=lambda message: said.append(message.line))
    assert said == ["out\n"]
    context = box.create_code_context(cwd="/tmp")
    assert box.run_code("import os; os.getcwd()", context=context).text == "/tmp"
    refused(lambda: box.run_code("import time; time.sleep(60)", timeout=1), "TimeoutException")
    assert box.run_code("x", timeout=20).text == "1"


def commands(box: Sandbox) -> None:
    assert box.commands.run("echo out; sudo id -un").stdout == "out\nroot\n"
    refused(lambda: box.commands.run("exit 4"), "CommandExitException")
    refused(lambda: box.commands.run("sleep 60", timeout=1), "TimeoutException")
    handle = box.commands.run("cat", background=True, stdin=True)
    box.commands.send_stdin(handle.pid, "typed\n")
    assert box.commands.kill(handle.pid)
    deadline = time.monotonic() + 20  # it is listed until it has been waited for
    while handle.pid in [process.pid for process in box.commands.list()]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def files(box: Sandbox) -> None:
    box.files.write("dir/file", "content")
    assert box.files.read("dir/file") == "content"
    box.commands.run("ln -s file link", cwd="/home/user/dir")
    link = box.files.get_info("dir/link")
    assert (link.type.value, link.symlink_target) == ("file", "/home/user/dir/file")
    assert [entry.name for entry in box.files.list("dir")] == ["file", "link"]
    watch = box.files.watch_dir("dir")
    box.files.write("dir/new", "x")
    assert [event.type.value for event in watch.get_new_events()] == ["create", "chmod", "write"]
    watch.stop()
    refused(lambda: box.files.read("none"), "FileNotFoundException")


def life(box: Sandbox) -> None:
    assert box.is_running()
    before = box.get_info().end_at
    Sandbox.connect(box.sandbox_id, timeout=5)
    assert box.get_info().end_at == before
    box.set_timeout(600)
    assert box.get_info().end_at > before
    assert box.sandbox_id in [info.sandbox_id for info in Sandbox.list().next_items()]
    assert box.get_metrics() is not None


def killed(box: Sandbox) -> None:
    threading.Timer(1, lambda: Sandbox.kill(box.sandbox_id)).start()
    refused(lambda: box.commands.run("sleep 60"), "TimeoutException", "killed or reached its end of life")
    assert not box.is_running()
    assert box.kill() is False


async def asynchronously() -> None:
    box = await AsyncSandbox.create("base", timeout=60, metadata={"a": "b"})
    try:
        assert (await box.run_code("1 + 1")).text == "2"
        assert (await box.commands.run("echo $0 | wc -l")).stdout.strip() == "1"
        await box.files.write("f", b"bytes")
        assert await box.files.read("f", format="bytes") == b"bytes"
        terminal = await box.pty.create(size_of(80, 24), on_data=lambda data: None)
        await box.pty.send_stdin(terminal.pid, b"exit 0\n")
        assert (await terminal.wait()).exit_code == 0
    finally:
        await box.kill()


def size_of(columns: int, rows: int):
    from e2b import PtySize

    return PtySize(rows=rows, cols=columns)


def main() -> None:
    assert tuple(int(part) for part in version("e2b").split(".")[:2]) <= (2, 50)
    box = Sandbox.create("base", timeout=100, envs={"A": "b"})
    for part in (code, commands, files, life, killed):
        part(box)
    asyncio.run(asynchronously())
    print("all well", flush=True)
    os._exit(0)  # threads of the SDK's HTTP client can abort an interpreter that is being shut down


if __name__ == "__main__":
    main()
