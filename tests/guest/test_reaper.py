import asyncio
import os
import subprocess
import sys

# In a process of its own: a reaper takes the status of every child, also of those of other tests.
PROGRAM = """
import asyncio, os, signal
from ringfence.guest.reaper import Reaper

def child(status):
    pid = os.fork()
    if pid == 0:
        os._exit(status)
    return pid

async def main():
    reaper = Reaper()
    reaper.start()
    known = {status: reaper.register(child(status)) for status in range(20)}
    unknown = [child(99) for _ in range(20)]
    sleeper = os.fork()
    if sleeper == 0:
        signal.pause()
    killed = reaper.register(sleeper)
    for status, future in known.items():
        assert os.waitstatus_to_exitcode(await future) == status
    assert not killed.done()
    os.kill(sleeper, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(await killed) == -signal.SIGKILL
    for pid in unknown:
        while os.path.exists(f"/proc/{pid}"):
            await asyncio.sleep(0.01)
    cancelled = reaper.register(child(1))
    cancelled.cancel()
    assert os.waitstatus_to_exitcode(await reaper.register(child(2))) == 2
    reaper.close()

asyncio.run(main())
"""


async def test_statuses_of_known_and_unknown_children() -> None:
    arguments = [sys.executable, "-W", "error", "-c", PROGRAM]
    result = await asyncio.to_thread(
        subprocess.run, arguments, capture_output=True, text=True, timeout=60, env=dict(os.environ)
    )
    assert (result.returncode, result.stderr) == (0, "")
