"""The engine's end of the egress process."""

import asyncio
import contextlib
import itertools
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ringfence.core.errors import LauncherError
from ringfence.engine.egress.outbox import Outbox
from ringfence.engine.egress.packages import PackageIndexes
from ringfence.engine.egress.settings import NetworkSettings
from ringfence.engine.zygote import channel

_STOP_SECONDS = 5
_ANSWER_SECONDS = 20
_PART = 64 * 1024
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}


class EgressLink:
    """Requests to the egress process, and its events. Started by `start`."""

    def __init__(self, end: socket.socket, process: asyncio.subprocess.Process) -> None:
        self._channel = end
        self._process = process
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loop = asyncio.get_running_loop()
        self.alive = True
        self.on_event: Callable[[dict[str, Any]], None] = lambda _: None
        self._outbox = Outbox(end)
        self._loop.add_reader(end, self._readable)

    @classmethod
    async def start(
        cls, settings: NetworkSettings, packages: PackageIndexes, roots: str = ""
    ) -> "EgressLink":
        """Start the process and tell it the operator's settings.

        roots: the authorities (PEM) by which it verifies servers whose connections it opens.
        """
        ours, theirs = channel.pair()
        ours.setblocking(False)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-m", "ringfence.engine.egress.main", str(theirs.fileno()),
                pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.DEVNULL, stdout=sys.stderr,
                env=_ENVIRONMENT, start_new_session=True,
            )  # fmt: skip
        finally:
            theirs.close()
        link = cls(ours, process)
        try:
            for at in range(0, len(roots), _PART):
                await link._call("roots", pem=roots[at : at + _PART])
            await link._call(
                "settings", settings=settings.as_dict(), packages=packages.hosts,
                indexes=[asdict(index) for index in packages.indexes], unverified=packages.unverified,
            )  # fmt: skip
        except BaseException:
            await link.aclose()
            raise
        return link

    async def attach(
        self, sandbox_id: str, policy: dict[str, Any], edges: list[dict[str, Any]]
    ) -> socket.socket:
        """Open a way out for a sandbox; the end that is the guest's. Raises LauncherError."""
        outside, inside = channel.pair()
        try:
            await self._call("attach", outside.fileno(), id=sandbox_id, policy=policy, edges=edges)
        except BaseException:
            inside.close()
            raise
        finally:
            outside.close()
        return inside

    async def set_policy(
        self, sandbox_id: str, policy: dict[str, Any], edges: list[dict[str, Any]], authority: str
    ) -> None:
        """Replace a sandbox's policy; in force when this returns."""
        await self._call("policy", id=sandbox_id, policy=policy, edges=edges, authority=authority)

    async def give_blob(self, number: int, descriptor: int | None, found: bool) -> None:
        """Answer the event ``blob``. Raises LauncherError."""
        descriptors = () if descriptor is None else (descriptor,)
        await self._call("blob", *descriptors, number=number, found=found)

    def end_blob(self, number: int) -> None:
        """Say that what was written under a number is stored, or gone."""
        if self.alive:
            with contextlib.suppress(OSError):
                self._outbox.send({"request": 0, "op": "blob_ended", "number": number})

    def detach(self, sandbox_id: str) -> bool:
        """Close a sandbox's way out, with every connection, soon; whether its account is still to come."""
        if self.alive:
            with contextlib.suppress(OSError):
                self._outbox.send({"request": 0, "op": "detach", "id": sandbox_id})
                return True
        return False

    async def account(self, sandbox_id: str) -> dict[str, int]:
        """What a sandbox has used of the network."""
        answer = await self._call("account", id=sandbox_id)
        account: dict[str, int] = answer.get("account", {})
        return account

    async def aclose(self) -> None:
        """End the process."""
        self._lost()
        try:
            await asyncio.wait_for(self._process.wait(), _STOP_SECONDS)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def _call(self, op: str, *fds: int, **arguments: Any) -> dict[str, Any]:
        if not self.alive:
            raise LauncherError("the egress process has ended")
        number = next(self._numbers)
        future: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._waiting[number] = future
        try:
            self._outbox.send({"request": number, "op": op, **arguments}, fds)
            async with asyncio.timeout(_ANSWER_SECONDS):
                answer = await future
        except (OSError, ValueError) as error:
            raise LauncherError(f"the egress process does not answer: {error}") from error
        finally:
            del self._waiting[number]
        if "error" in answer:
            raise LauncherError(answer["error"])
        return answer

    def _readable(self) -> None:
        try:
            message, fds = channel.receive(self._channel)
        except BlockingIOError:
            return
        except (channel.ChannelClosedError, ValueError):
            self._lost()
            return
        channel.close_all(fds)
        if "reply" not in message:
            self.on_event(message)
            return
        future = self._waiting.get(message["reply"])
        if future is not None and not future.done():
            future.set_result(message)

    def _lost(self) -> None:
        if not self.alive:
            return
        self.alive = False
        self._outbox.close()
        self._loop.remove_reader(self._channel)
        self._channel.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(LauncherError("the egress process has ended"))
