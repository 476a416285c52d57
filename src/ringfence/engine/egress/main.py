"""The egress process: every sandbox's way out, and nothing else.

It has no privilege. Of secrets it has what it needs to speak for others: the headers that are set in requests
of sandboxes (`transforms`) with the private keys of the certificates for that, and this machine's credentials
for its package indexes (`mirror`). The engine sends it requests over a SEQPACKET channel, and it ends when
that closes:

- ``roots`` (pem: a part of the authorities that servers outside are verified by), ``settings`` (settings,
  packages, indexes, unverified): first of all;
- ``attach`` (id, policy, edges; beside it the sandbox's channel), ``policy`` (id, policy, edges, authority),
  ``detach`` (id);
- ``account`` (id);
- ``blob`` (number, found; beside it a descriptor): the answer to an event of that name; ``blob_ended``
  (number): that to ``blob-end``.

Each request is answered. Events: ``network``, something was refused to a sandbox or reached by it;
``account``, what one that is detached has used; ``blob``
(number, digest), a file of the package cache is needed; ``blob-end`` (number, whole), it was written.
"""

import asyncio
import contextlib
import encodings.idna  # noqa: F401 - the resolver imports it by name, when this process cannot read files
import os
import resource
import socket
import sys
from typing import Any

from ringfence.engine.egress.dialer import Dialer
from ringfence.engine.egress.gateway import Gateway
from ringfence.engine.egress.http1 import client_context
from ringfence.engine.egress.mirror.blobs import Blobs
from ringfence.engine.egress.mirror.fetch import Fetcher
from ringfence.engine.egress.mirror.service import Index, Mirror
from ringfence.engine.egress.policy import PolicyError, from_fields, preset
from ringfence.engine.egress.resolver import Resolver
from ringfence.engine.egress.settings import NetworkSettings, fixed_hosts
from ringfence.engine.egress.transforms import Edge
from ringfence.engine.isolation import capabilities, linux
from ringfence.engine.outbox import Outbox
from ringfence.engine.zygote import channel

_NOBODY = 65534
_CEILING = "the operator's ceiling (RINGFENCE_NETWORK_CEILING)"


class Egress:
    """All gateways. Made inside of the event loop."""

    def __init__(self, engine: socket.socket) -> None:
        engine.setblocking(False)
        self._engine = engine
        self._outbox = Outbox(engine)
        self._gateways: dict[str, Gateway] = {}
        self._settings = NetworkSettings()
        self._packages: list[tuple[str, int]] = []
        self._dialer = Dialer(self._settings, Resolver({}), ())
        self._ceiling = preset("none", ())
        self._roots = ""
        self._trusted = client_context("")
        self._blobs = Blobs(self._tell, 0)
        self._mirror: Mirror | None = None
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(engine, self._readable)

    async def run(self) -> None:
        """Serve until the engine closes its end."""
        await self._ended.wait()

    def _readable(self) -> None:
        try:
            request, fds = channel.receive(self._engine)
        except BlockingIOError:
            return
        except channel.ChannelClosedError:
            self._ended.set()
            return
        try:
            answer = getattr(self, "_verb_" + request["verb"])(request, fds)
        except PolicyError as error:
            answer = {"error": str(error)}
        finally:
            channel.close_all(fds)
        self._tell({"reply": request["request"], **answer})

    def _verb_settings(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        self._settings = NetworkSettings.from_dict(request["settings"])
        self._packages = [(host, port) for host, port in request["packages"]]
        resolver = Resolver(fixed_hosts(self._settings.hosts))
        self._dialer = Dialer(self._settings, resolver, self._packages)
        self._ceiling = preset(self._settings.ceiling, self._packages, _CEILING)
        self._trusted, self._roots = client_context(self._roots), ""
        if self._settings.package_cache_mb:
            fetcher = Fetcher(self._dialer, self._trusted, frozenset(request["unverified"]))
            self._blobs = Blobs(self._tell, self._settings.package_cache_mb << 20)
            indexes = tuple(Index(**fields) for fields in request["indexes"])
            self._mirror = Mirror(indexes, fetcher, self._blobs)
        return {}

    def _verb_roots(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        self._roots += request["pem"]
        return {}

    def _verb_blob(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        self._blobs.opened(request["number"], fds.pop() if fds else None, request["found"])
        return {}

    def _verb_blob_ended(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        self._blobs.ended(request["number"])
        return {}

    def _verb_attach(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        sandbox_id = request["id"]
        policy = from_fields(request["policy"], self._packages)
        end = socket.socket(fileno=fds.pop())
        before = self._gateways.pop(sandbox_id, None)  # of a life before a pause
        self._gateways[sandbox_id] = Gateway(
            end,
            policy,
            self._ceiling,
            self._dialer,
            self._settings,
            self._trusted,
            self._mirror,
            lambda level, text: self._tell(
                {"event": "network", "id": sandbox_id, "level": level, "message": text}
            ),
        )
        if before is not None:
            before.close()
            self._gateways[sandbox_id].usage = before.usage
        self._gateways[sandbox_id].set_policy(policy, _edges(request))
        return {}

    def _verb_policy(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        gateway = self._gateways.get(request["id"])
        if gateway is not None:
            policy = from_fields(request["policy"], self._packages)
            gateway.set_policy(policy, _edges(request), request["authority"])
        return {}

    def _verb_detach(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        gateway = self._gateways.pop(request["id"], None)
        if gateway is None:
            return {}
        gateway.close()
        self._tell({"event": "account", "id": request["id"], "account": gateway.account()})
        return {}

    def _verb_account(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        gateway = self._gateways.get(request["id"])
        return {"account": gateway.account()} if gateway is not None else {}

    def _tell(self, message: dict[str, Any]) -> None:
        """Send the engine a message. As many wait as it has asked for, and as sandboxes may cause reports."""
        with contextlib.suppress(OSError):  # it has gone, and so do we
            self._outbox.send(message)


def _edges(request: dict[str, Any]) -> list[Edge]:
    return [Edge.of(fields) for fields in request["edges"]]


def _drop_privileges() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        linux.prctl(linux.PR_SET_KEEPCAPS, 0)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    capabilities.no_new_privs()


def main() -> None:
    """Entry point; argv[1] is the descriptor of the channel to the engine."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.environ["LOCALDOMAIN"] = "."  # the host's search domains are none of a sandbox's business
    engine = socket.socket(fileno=int(sys.argv[1]))
    _drop_privileges()

    async def serve() -> None:
        await Egress(engine).run()

    asyncio.run(serve())
    os._exit(0)  # a look-up that hangs must not keep us


if __name__ == "__main__":
    main()
