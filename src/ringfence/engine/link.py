"""The engine's end of the channel to its launcher."""

import asyncio
import sys

from ringfence.engine.process_link import ENVIRONMENT, ProcessLink, start_process

_STOP_SECONDS = 20


async def sweep() -> None:
    """Remove the cgroups of a launcher that could not do it itself, because it was killed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-m", "ringfence.engine.launcher.sweep", stdin=asyncio.subprocess.DEVNULL,
        stdout=sys.stderr, env=ENVIRONMENT, start_new_session=True,
    )  # fmt: skip
    try:
        await asyncio.wait_for(process.wait(), _STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()


class LauncherLink(ProcessLink):
    """Requests to the launcher and its events; the last of them is ``launcher-died``, if it has."""

    @classmethod
    async def start(cls) -> "LauncherLink":
        """Start the launcher process."""
        end, process = await start_process("ringfence.engine.launcher.main")
        return cls(end, process, "launcher", stop_seconds=_STOP_SECONDS)

    def _lost(self) -> None:
        self.on_event({"event": "launcher-died"})
