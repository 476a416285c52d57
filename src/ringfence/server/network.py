"""The network part of the control plane: E2B's fields as the engine's rules, and what has no counterpart."""

import dataclasses
import ipaddress
from typing import TYPE_CHECKING

from ringfence.engine.egress.policy import PolicyError
from ringfence.engine.egress.transforms import Transform, parse_transforms
from ringfence.engine.model import NetworkRules
from ringfence.server.errors import ApiError, not_implemented
from ringfence.server.models import Network, NetworkUpdate
from ringfence.server.records import Record
from ringfence.server.secrets.placeholders import filled, others_in, secrets_in
from ringfence.server.secrets.service import Secrets

if TYPE_CHECKING:
    from ringfence.engine.engine import Engine

_INGRESS = frozenset(("allowPublicTraffic", "maskRequestHost", "httpsPorts"))


class NetworkRequests:
    """Turns what requests ask for into rules, with secrets filled in, and puts them in force."""

    def __init__(self, engine: "Engine", secrets: Secrets) -> None:
        self._engine = engine
        self._secrets = secrets

    @property
    def generation(self) -> int:
        """Grows when rules that were made before may have old secrets in them."""
        return self._secrets.generation

    async def rules_of(
        self, owner: str, network: Network | None, allow_internet_access: bool | None
    ) -> NetworkRules:
        """The rules a request asks for. Raises ApiError (400, 501) for what makes no sense or is missing."""
        network = network or Network.model_validate({})
        _refuse_missing(network)
        try:
            rules = NetworkRules(
                allow=(*(network.allow_out or ()), *_name_servers(network)),
                deny=tuple(network.deny_out or ()),
                internet=allow_internet_access,
                transforms=await self._transforms(owner, network),
            )
            self._engine.check_network(rules)
        except PolicyError as error:
            raise ApiError(400, f"network: {error}") from None
        return rules

    async def update(self, record: Record, update: NetworkUpdate) -> None:
        """Replace a sandbox's egress rules; what the request leaves out is cleared. Raises ApiError."""
        async with record.network_lock:
            await self._update(record, update)

    async def _update(self, record: Record, update: NetworkUpdate) -> None:
        rules = await self.rules_of(record.owner, update, update.allow_internet_access)
        await self._engine.set_network(record.sandbox_id, rules)
        ingress = {key: value for key, value in record.network.items() if key in _INGRESS}
        egress = {key: value for key, value in update.described().items() if key not in _INGRESS}
        record.allow_internet_access = egress.pop("allow_internet_access", None)
        record.network = ingress | egress
        # What is forked from it later starts from its request, and must not get back what was taken from it.
        if record.request is not None:
            record.request = record.request.model_copy(
                update={
                    "network": Network.model_validate(record.network),
                    "allow_internet_access": record.allow_internet_access,
                }
            )

    async def refresh(self, record: Record) -> None:
        """Fill in the secrets of a sandbox's rules anew. Raises ApiError."""
        async with record.network_lock:  # else an update meanwhile would be undone
            network = Network.model_validate(record.network)
            if secrets_in(_values(network)):
                rules = await self.rules_of(record.owner, network, record.allow_internet_access)
                await self._engine.set_network(record.sandbox_id, rules)

    async def _transforms(self, owner: str, network: Network) -> tuple[Transform, ...]:
        if not network.rules:
            return ()
        texts = _values(network)
        for other in sorted(others_in(texts)):
            raise not_implemented(f"network.rules: the placeholder ${{e2b.{other[:100]}}}")
        values = await self._secrets.values(owner, secrets_in(texts))
        return tuple(_filled(one, values) for one in parse_transforms(_headers(network)))


def _name_servers(network: Network) -> tuple[str, ...]:
    """The name servers that may be reached, as E2B has it: when names are allowed, and all of their ports."""
    names = any(not _is_block(entry) for entry in network.allow_out or ())
    return tuple(map(str, network.dns_servers or ())) if names else ()


def _is_block(entry: str) -> bool:
    try:
        ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
    return True


def _headers(network: Network) -> dict[str, dict[str, str]]:
    """The headers to set for each host; of two rules for one header, the later holds."""
    found: dict[str, dict[str, str]] = {}
    for host, rules in (network.rules or {}).items():
        headers = found.setdefault(host, {})
        for rule in rules:
            for name, value in (rule.transform.headers if rule.transform else {}).items():
                for same in [kept for kept in headers if kept.lower() == name.lower()]:
                    del headers[same]
                headers[name] = value
    return {host: headers for host, headers in found.items() if headers}


def _values(network: Network) -> list[str]:
    return [value for headers in _headers(network).values() for value in headers.values()]


def _filled(transform: Transform, values: dict[str, str | None]) -> Transform:
    try:
        headers = tuple((name, filled(value, values)) for name, value in transform.headers)
    except KeyError as error:
        problem = (
            f"the secret {error.args[0]!r}, which a rule for {transform.host} names, does not exist; "
            "create it, or change the rule"
        )
        return dataclasses.replace(transform, headers=(), problem=problem)
    return dataclasses.replace(transform, headers=headers)


def _refuse_missing(network: Network) -> None:
    """Refuse what was asked for and cannot be done; to leave it out silently would be a lie."""
    missing = {
        "network.egressProxy": network.egress_proxy,
        "network.httpsPorts": network.https_ports,
    }
    for name, value in missing.items():
        if value:
            raise not_implemented(name)
    for name in network.model_extra or {}:
        raise not_implemented(f"network.{name}")
    for rule in (rule for rules in (network.rules or {}).values() for rule in rules):
        unknown = {**(rule.model_extra or {}), **((rule.transform and rule.transform.model_extra) or {})}
        for name in unknown:
            raise not_implemented(f"network.rules with {name[:100]!r}")
