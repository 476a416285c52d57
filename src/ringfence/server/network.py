"""The network part of the control plane: E2B's fields as the engine's rules, and what has no counterpart."""

from typing import TYPE_CHECKING

from ringfence.engine.egress.policy import PolicyError
from ringfence.engine.model import NetworkRules
from ringfence.server.errors import ApiError, not_implemented
from ringfence.server.models import Network, NetworkUpdate
from ringfence.server.records import Record

if TYPE_CHECKING:
    from ringfence.engine.engine import Engine

_INGRESS = frozenset(("allowPublicTraffic", "maskRequestHost", "httpsPorts"))


def rules_of(engine: "Engine", network: Network | None, allow_internet_access: bool | None) -> NetworkRules:
    """The rules that a request asks for. Raises ApiError (400, 501) for what makes no sense or is missing."""
    network = network or Network.model_validate({})
    _refuse_missing(network)
    rules = NetworkRules(
        allow=tuple(network.allow_out or ()),
        deny=tuple(network.deny_out or ()),
        internet=allow_internet_access,
    )
    try:
        engine.check_network(rules)
    except PolicyError as error:
        raise ApiError(400, f"network: {error}") from None
    return rules


async def update_network(engine: "Engine", record: Record, update: NetworkUpdate) -> None:
    """Replace a sandbox's egress rules; what the request leaves out is cleared. Raises ApiError."""
    rules = rules_of(engine, update, update.allow_internet_access)
    await engine.set_network(record.sandbox_id, rules)
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


def _refuse_missing(network: Network) -> None:
    """Refuse what was asked for and cannot be done; to leave it out silently would be a lie."""
    missing = {
        "network.rules (changing requests on their way out)": network.rules,
        "network.egressProxy": network.egress_proxy,
        "network.httpsPorts": network.https_ports,
        "network.dnsServers (names are looked up by the host)": network.dns_servers,
    }
    for name, value in missing.items():
        if value:
            raise not_implemented(name)
    for name in network.model_extra or {}:
        raise not_implemented(f"network.{name}")
