"""Names and the addresses that stand for them inside the sandbox."""

import ipaddress
from collections import OrderedDict

_FIRST = int(ipaddress.IPv4Address("198.18.0.1"))
NETWORK = ipaddress.IPv4Network("198.18.0.0/15")
"""Set apart for benchmarks of devices (RFC 2544), so no real host has an address in it."""

CAPACITY = 65_536


class Names:
    """A table of names and addresses. When it is full, the name that was asked for longest ago leaves."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._addresses: OrderedDict[str, int] = OrderedDict()
        self._names: dict[int, str] = {}

    def address_of(self, name: str) -> str:
        """The address of a name, the same one as long as the name is in use."""
        number = self._addresses.get(name)
        if number is None:
            number = self._free()
            self._addresses[name] = number
            self._names[number] = name
        self._addresses.move_to_end(name)
        return str(ipaddress.IPv4Address(number))

    def name_of(self, address: str) -> str | None:
        """The name an address stands for."""
        return self._names.get(int(ipaddress.IPv4Address(address)))

    def _free(self) -> int:
        if len(self._addresses) < self._capacity:
            return _FIRST + len(self._addresses)
        _, number = self._addresses.popitem(last=False)
        del self._names[number]
        return number


def is_synthetic(address: str) -> bool:
    """Whether an address is of the range that stands for names."""
    return ipaddress.IPv4Address(address) in NETWORK
