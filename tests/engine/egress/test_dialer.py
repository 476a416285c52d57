"""What a name leads to is judged each time, and the address that was judged is the one that is dialled."""

import asyncio
import ipaddress

import pytest

from ringfence.engine.egress.dialer import Destination, Dialer, RefusedError
from ringfence.engine.egress.hosts import IPAddress
from ringfence.engine.egress.policy import parse_policy
from ringfence.engine.egress.resolver import Resolver
from ringfence.engine.egress.settings import NetworkSettings

ADDRESS = "127.0.0.18"


class Rebinding(Resolver):
    """The answers of a hostile name server, one after the other."""

    def __init__(self, *answers: str) -> None:
        super().__init__({})
        self._answers = [tuple(map(ipaddress.ip_address, answer.split())) for answer in answers]

    async def addresses(self, name: str) -> tuple[IPAddress, ...]:
        return self._answers.pop(0)


def dialer(*answers: str) -> Dialer:
    return Dialer(NetworkSettings(allow_private=(ADDRESS,)), Rebinding(*answers), ())


POLICY = (parse_policy(["evil.test:*"], ["0.0.0.0/0"], None, ()),)


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1", "::ffff:127.0.0.1"])
async def test_a_name_that_changes_its_address(address: str) -> None:
    hostile = dialer("93.184.216.34", address)
    assert await hostile.look_up("evil.test", POLICY)
    with pytest.raises(RefusedError, match="was refused: it is"):
        await hostile.dial(Destination("evil.test", 80), POLICY)


async def test_of_several_addresses_only_allowed_ones_are_dialled() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), ADDRESS, 0)
    port = server.sockets[0].getsockname()[1]
    hostile = dialer(f"10.0.0.1 169.254.169.254 {ADDRESS}")
    connection, address, held = await hostile.dial(Destination("evil.test", port), POLICY)
    with connection:
        assert (str(address), held) == (ADDRESS, True)
        assert connection.getpeername()[0] == ADDRESS
    server.close()
    await server.wait_closed()
