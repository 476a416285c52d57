"""The network of this engine's sandboxes: the egress process, and which policy each sandbox has."""

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ringfence.core.errors import LauncherError
from ringfence.engine.egress.link import EgressLink
from ringfence.engine.egress.packages import PackageIndexes, package_indexes
from ringfence.engine.egress.policy import from_fields, preset_fields
from ringfence.engine.egress.settings import NetworkSettings
from ringfence.engine.model import NetworkRules

NetworkListener = Callable[[str, str, str], None]
"""Takes a sandbox's id, a level (``warning``: something was refused) and a sentence."""


class Network:
    """Opens and closes ways out, and starts the egress process again should it die."""

    def __init__(self, settings: NetworkSettings) -> None:
        self._settings = settings
        self._indexes: PackageIndexes = package_indexes(os.environ, Path.home())
        self._link: EgressLink | None = None
        self._starting = asyncio.Lock()
        self._policies: dict[str, dict[str, Any]] = {}
        self.listeners: list[NetworkListener] = []

    @property
    def env(self) -> dict[str, str]:
        """Variables that tell programs inside which package indexes to use."""
        return self._indexes.env

    async def start(self) -> None:
        """Start the egress process. Raises ConfigurationError, LauncherError."""
        self._settings.check()
        await self._egress()

    def check(self, rules: NetworkRules) -> None:
        """Raises PolicyError for rules that make no sense."""
        from_fields(self._fields(rules), self._indexes.hosts)

    async def open(self, sandbox_id: str, rules: NetworkRules | None) -> socket.socket:
        """A way out for a sandbox: the end that goes to its guest. `rules` None: as they were before.

        Raises PolicyError, LauncherError.
        """
        fields = self._fields(rules) if rules is not None else self._policies[sandbox_id]
        from_fields(fields, self._indexes.hosts)
        end = await (await self._egress()).attach(sandbox_id, fields)
        self._policies[sandbox_id] = fields
        return end

    async def set_rules(self, sandbox_id: str, rules: NetworkRules) -> None:
        """Put other rules in force, for connections that stand as well. Raises PolicyError, LauncherError."""
        self.check(rules)
        self._policies[sandbox_id] = self._fields(rules)
        await (await self._egress()).set_policy(sandbox_id, self._policies[sandbox_id])

    async def account(self, sandbox_id: str) -> dict[str, int]:
        """What a sandbox has used: connections, open_connections, bytes_sent, bytes_received, refused."""
        try:
            return await (await self._egress()).account(sandbox_id)
        except LauncherError:
            return {}

    def forget(self, sandbox_id: str) -> None:
        """Close the way out of a sandbox that has ended."""
        self._policies.pop(sandbox_id, None)
        if self._link is not None:
            self._link.detach(sandbox_id)

    async def aclose(self) -> None:
        """End the egress process."""
        if self._link is not None:
            await self._link.aclose()

    def _fields(self, rules: NetworkRules) -> dict[str, Any]:
        if not rules.allow and not rules.deny and rules.internet is None:
            return preset_fields(self._settings.default)
        return {"allow": list(rules.allow), "deny": list(rules.deny), "internet": rules.internet}

    async def _egress(self) -> EgressLink:
        async with self._starting:
            if self._link is None or not self._link.alive:
                if self._link is not None:
                    await self._link.aclose()
                self._link = await EgressLink.start(self._settings, self._indexes)
                self._link.on_event = self._on_event
            return self._link

    def _on_event(self, event: dict[str, Any]) -> None:
        for listener in self.listeners:
            listener(event["id"], event["level"], event["message"])
