"""The network of this engine's sandboxes: the egress process, and which policy each sandbox has."""

import asyncio
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ringfence.core.errors import LauncherError
from ringfence.engine.egress.link import EgressLink
from ringfence.engine.egress.packages import PackageIndexes, package_indexes
from ringfence.engine.egress.policy import PolicyError, from_fields, preset_fields
from ringfence.engine.egress.settings import NetworkSettings
from ringfence.engine.egress.transforms import Transform, check_size
from ringfence.engine.model import NetworkRules
from ringfence.engine.network_authority import NetworkAuthority
from ringfence.engine.package_cache import PackageCache
from ringfence.engine.templates.hostfiles import find_certificates
from ringfence.engine.templates.indexes import user_home

NetworkListener = Callable[[str, str, str], None]
"""Takes a sandbox's id, a level (``warning``: something was refused) and a sentence."""


AccountListener = Callable[[str, dict[str, int]], None]
"""Takes the id of a sandbox that has ended, and what it has used."""


_MAX_RULES_BYTES = 40 * 1024
"""Rules, certificates and headers go to the egress in one message."""


class Network:
    """Opens and closes ways out, and starts the egress process again should it die."""

    def __init__(
        self, settings: NetworkSettings, authority_dir: Path | None = None, cache_dir: Path | None = None
    ) -> None:
        self._settings = settings
        self._cache = PackageCache(cache_dir, settings.package_cache_mb << 20)
        self._tasks: set[asyncio.Task[None]] = set()
        self._authority = NetworkAuthority(authority_dir)
        self._edges: dict[str, list[dict[str, Any]]] = {}
        self._indexes: PackageIndexes = package_indexes(os.environ, user_home())
        self._link: EgressLink | None = None
        self._starting = asyncio.Lock()
        self._policies: dict[str, dict[str, Any]] = {}
        self.listeners: list[NetworkListener] = []
        self.account_listeners: list[AccountListener] = []

    def described(self) -> dict[str, str | int]:
        """The operator's settings, for people."""
        return {
            "default": self._settings.default,
            "ceiling": self._settings.ceiling,
            "package_cache_mb": self._settings.package_cache_mb,
        }

    def env_for(self, sandbox_id: str) -> dict[str, str]:
        """Variables that tell programs inside which package indexes to use."""
        return self._indexes.mirror_env if self.has_mirror(sandbox_id) else self._indexes.env

    def has_mirror(self, sandbox_id: str) -> bool:
        """Whether a sandbox installs packages from the mirror."""
        fields = self._policies.get(sandbox_id)
        if not self._settings.package_cache_mb or fields is None:
            return False
        policy = from_fields(fields, self._indexes.hosts)
        return not policy.denies_all or any(
            policy.judge_name(host, port).allowed for host, port in self._indexes.hosts
        )

    async def start(self) -> None:
        """Start the egress process. Raises ConfigurationError, LauncherError."""
        self._settings.check()
        await self._egress()

    def check(self, rules: NetworkRules) -> None:
        """Raises PolicyError for rules that make no sense."""
        fields = self._fields(rules)
        from_fields(fields, self._indexes.hosts)
        check_size(rules.transforms)
        if len(json.dumps(fields)) > _MAX_RULES_BYTES:
            raise PolicyError(f"the rules are larger than {_MAX_RULES_BYTES} bytes together")

    def authority_for(self, sandbox_id: str) -> str:
        """The certificate (PEM) that a sandbox must trust for its requests to be changed, or nothing."""
        return self._authority.certificate if self._edges.get(sandbox_id) else ""

    async def open(self, sandbox_id: str, rules: NetworkRules | None) -> socket.socket:
        """A way out for a sandbox: the end that goes to its guest. `rules` None: as they were before.

        Raises PolicyError, LauncherError.
        """
        fields = self._fields(rules) if rules is not None else self._policies[sandbox_id]
        from_fields(fields, self._indexes.hosts)
        edges = await self._edges_of(rules.transforms) if rules is not None else self._edges[sandbox_id]
        end = await (await self._egress()).attach(sandbox_id, fields, edges)
        self._policies[sandbox_id], self._edges[sandbox_id] = fields, edges
        return end

    async def set_rules(self, sandbox_id: str, rules: NetworkRules) -> None:
        """Put other rules in force, for connections that stand as well. Raises PolicyError, LauncherError."""
        self.check(rules)
        edges = await self._edges_of(rules.transforms)
        if sandbox_id not in self._policies:
            return  # it has ended meanwhile, and nothing of its secrets may stay
        self._policies[sandbox_id], self._edges[sandbox_id] = self._fields(rules), edges
        egress = await self._egress()
        await egress.set_policy(sandbox_id, self._policies[sandbox_id], edges, self.authority_for(sandbox_id))

    async def account(self, sandbox_id: str) -> dict[str, int]:
        """What a sandbox has used: connections, open_connections, bytes_sent, bytes_received, refused."""
        try:
            return await (await self._egress()).account(sandbox_id)
        except LauncherError:
            return {}

    def forget(self, sandbox_id: str) -> None:
        """Close the way out of a sandbox that has ended."""
        self._policies.pop(sandbox_id, None)
        self._edges.pop(sandbox_id, None)
        if self._link is None or not self._link.detach(sandbox_id):
            self._tell_account(sandbox_id, {})

    def _tell_account(self, sandbox_id: str, account: dict[str, int]) -> None:
        for listener in self.account_listeners:
            listener(sandbox_id, account)

    async def aclose(self) -> None:
        """End the egress process."""
        self._cache.close()
        if self._link is not None:
            await self._link.aclose()

    def _fields(self, rules: NetworkRules) -> dict[str, Any]:
        if not rules.allow and not rules.deny and rules.internet is None:
            return preset_fields(self._settings.default)
        return {"allow": list(rules.allow), "deny": list(rules.deny), "internet": rules.internet}

    async def _edges_of(self, transforms: tuple[Transform, ...]) -> list[dict[str, Any]]:
        edges = []
        for transform in transforms:
            certificate, key = await self._authority.issue(transform.host)
            edges.append({**transform.as_fields(), "certificate": certificate, "key": key})
        return edges

    def _roots(self) -> str:
        extra = Path(self._settings.extra_roots).read_text() if self._settings.extra_roots else ""
        return find_certificates().decode("ascii", "ignore") + extra

    async def _egress(self) -> EgressLink:
        async with self._starting:
            if self._link is None or not self._link.alive:
                if self._link is not None:
                    await self._link.aclose()
                    self._cache.close()  # the next process numbers its files from one again
                self._link = await EgressLink.start(self._settings, self._indexes, self._roots())
                self._link.on_event = self._on_event
            return self._link

    def _on_event(self, event: dict[str, Any]) -> None:
        if event["event"] == "account":
            self._tell_account(event["id"], event["account"])
            return
        if event["event"] != "network":
            task = asyncio.get_running_loop().create_task(self._on_blob(event, self._link))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        for listener in self.listeners:
            listener(event["id"], event["level"], event["message"])

    async def _on_blob(self, event: dict[str, Any], link: EgressLink | None) -> None:
        """A file of the package cache is wanted, or was written, by the process behind `link`."""
        number = event["number"]
        if event["event"] == "blob-end":
            await asyncio.to_thread(self._cache.end, number, whole=event["whole"])
            if link is not None:
                link.end_blob(number)
            return
        descriptor, found = await asyncio.to_thread(self._cache.open, number, event["digest"])
        try:
            if link is not None:
                await link.give_blob(number, descriptor, found)
        except LauncherError:
            self._cache.end(number, whole=False)
        finally:
            if descriptor is not None:
                os.close(descriptor)
