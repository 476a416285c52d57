"""The engine's end of the egress process."""

import socket
from dataclasses import asdict
from typing import Any

from ringfence.engine.egress.packages import PackageIndexes
from ringfence.engine.egress.settings import NetworkSettings
from ringfence.engine.process_link import ProcessLink, start_process
from ringfence.engine.zygote import channel

_STOP_SECONDS = 5
_ANSWER_SECONDS = 20
_PART = 64 * 1024


class EgressLink(ProcessLink):
    """Requests to the egress process, and its events. Started by `start`."""

    @classmethod
    async def start(
        cls, settings: NetworkSettings, packages: PackageIndexes, roots: str = ""
    ) -> "EgressLink":
        """Start the process and tell it the operator's settings.

        roots: the authorities (PEM) by which it verifies servers whose connections it opens.
        """
        end, process = await start_process("ringfence.engine.egress.main")
        link = cls(end, process, "egress process", stop_seconds=_STOP_SECONDS, answer_seconds=_ANSWER_SECONDS)
        try:
            for at in range(0, len(roots), _PART):
                await link.call("roots", pem=roots[at : at + _PART])
            await link.call(
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
            await self.call("attach", outside.fileno(), id=sandbox_id, policy=policy, edges=edges)
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
        await self.call("policy", id=sandbox_id, policy=policy, edges=edges, authority=authority)

    async def give_blob(self, number: int, descriptor: int | None, found: bool) -> None:
        """Answer the event ``blob``. Raises LauncherError."""
        descriptors = () if descriptor is None else (descriptor,)
        await self.call("blob", *descriptors, number=number, found=found)

    def end_blob(self, number: int) -> None:
        """Say that what was written under a number is stored, or gone."""
        self.tell("blob_ended", number=number)

    def detach(self, sandbox_id: str) -> bool:
        """Close a sandbox's way out, with every connection, soon; whether its account is still to come."""
        return self.tell("detach", id=sandbox_id)

    async def account(self, sandbox_id: str) -> dict[str, int]:
        """What a sandbox has used of the network."""
        answer = await self.call("account", id=sandbox_id)
        account: dict[str, int] = answer.get("account", {})
        return account
