"""Attacks over the network and its kin: addresses, odd sockets, and Unix sockets of the host."""

import errno
import fcntl
import os
import socket
import struct
from contextlib import suppress

from ringfence.engine.proof.inside import native
from ringfence.engine.proof.inside.harness import Facts, GotThrough, attack

CATEGORY = "network"
_NAMESPACE = "network namespace"
_SECONDS = 1.0
_QUICK = 0.3


def _talk(address: str, port: int, hello: bytes) -> str:
    """Connect and say something: evidence of the refusal. Raises GotThrough when anything is answered.

    A connection alone proves nothing: inside, whatever listens for the egress policy accepts it, and closes
    it when the policy says no.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(_SECONDS)
        try:
            probe.connect((address, port))
            probe.sendall(hello)
            answer = probe.recv(200)
        except TimeoutError:
            raise GotThrough(f"{address} port {port}: neither refused nor closed") from None
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error))
    if answer:
        raise GotThrough(f"{address} port {port} answered {answer[:40]!r}")
    return "closed"


@attack(CATEGORY, _NAMESPACE)
def the_hosts_loopback(facts: Facts) -> str:
    """A service that listens on the host's 127.0.0.1."""
    hello = facts["token"].encode()
    answers = [_talk(address, facts["tcp_port"], hello) for address in ("127.0.0.1", "0.0.0.0", "127.1.2.3")]  # noqa: S104
    return f"port {facts['tcp_port']}: {', '.join(answers)}"


@attack(CATEGORY, "egress policy", seconds=8)
def the_hosts_addresses(facts: Facts) -> str:
    """A service on the host's own address; the host looks whether the connection arrived."""
    answers = [
        f"{address} {_talk(address, port, facts['token'].encode())}" for address, port in facts["addresses"]
    ]
    return ", ".join(answers) or "the host has no address but loopback"


@attack(CATEGORY, "egress policy", seconds=8)
def the_metadata_service(facts: Facts) -> str:
    """Clouds give credentials to whoever asks there."""
    hello = b"GET /latest/meta-data/ HTTP/1.0\r\n\r\n"
    addresses = ("169.254.169.254", "169.254.170.2", "100.100.100.200", "fd00:ec2::254")
    return ", ".join(f"{address} {_talk(address, 80, hello)}" for address in addresses)


@attack(CATEGORY, "egress policy", seconds=8)
def an_address_that_is_denied(facts: Facts) -> str:
    """Private networks, which are denied always, and an address that this sandbox's rules deny."""
    hello = b"GET / HTTP/1.0\r\n\r\n"
    answers = [_talk(address, 80, hello) for address in ("10.0.0.1", "192.168.0.1", facts["denied"])]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.settimeout(_QUICK)
        try:
            probe.connect((facts["denied"], 123))
            probe.send(b"\x1b" + bytes(47))
            raise GotThrough(f"UDP port 123 of {facts['denied']} answered {probe.recv(100)!r}")
        except OSError as error:  # no answer is one
            udp = errno.errorcode.get(error.errno or 0, "no answer")
    return f"TCP {', '.join(answers)}; UDP {udp}"


@attack(CATEGORY, _NAMESPACE)
def there_are_interfaces(facts: Facts) -> str:
    """Any interface but loopback leads somewhere."""
    names = [name for _, name in socket.if_nameindex()]
    if set(names) - {"lo"}:
        raise GotThrough(f"interfaces: {', '.join(names)}")
    return f"interfaces: {', '.join(names)}"


@attack(CATEGORY, _NAMESPACE)
def the_network_is_reconfigured(facts: Facts) -> str:
    """Take loopback down, give it an address: needs power over the network namespace."""
    answers = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for request, data in (
            (0x8914, struct.pack("16sH14s", b"lo", 0x1, b"")),
            (0x8916, struct.pack("16sHH4s8s", b"lo:9", 2, 0, socket.inet_aton("127.9.9.9"), b"")),
        ):
            try:
                fcntl.ioctl(probe, request, data)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTTY):  # ENOTTY: a kernel without this request
                    raise GotThrough(f"ioctl {request:#x} on lo reached the kernel: {error}") from None
                answers.append(errno.errorcode[error.errno])
                continue
            raise GotThrough(f"ioctl {request:#x} on lo was done")
    return f"ioctl on lo: {', '.join(answers)}"


@attack(CATEGORY, "seccomp")
def odd_sockets(facts: Facts) -> str:
    """Families whose kernel code exploits are made of, or that lead out of the network namespace."""
    families = {
        "packet": 17,
        "vsock": 40,
        "alg": 38,
        "xdp": 44,
        "key": 15,
        "tipc": 30,
        "bluetooth": 31,
        "can": 29,
        "rds": 21,
        "nfc": 39,
    }
    for name, number in families.items():
        for family in (number, number | 1 << 32):
            try:
                descriptor = native.call(
                    "socket",
                    family,
                    3 if name in ("packet", "xdp", "key", "bluetooth") else 5 if name == "alg" else 1,
                    0,
                )
            except OSError:
                continue
            os.close(descriptor)
            raise GotThrough(f"a socket of family {name} was made")
    return f"none of {len(families)} families"


@attack(CATEGORY, "seccomp")
def netlink_of_the_firewall(facts: Facts) -> str:
    """NETLINK_NETFILTER (CVE-2024-1086), audit, generic and crypto netlink, also with high bits."""
    calls = [("socket", 16, 3, protocol) for protocol in (12, 9, 16, 21, 12 | 1 << 32)]
    return native.refuse_all(calls)


@attack(CATEGORY, "seccomp")
def raw_sockets(facts: Facts) -> str:
    """Raw IP, v4 and v6, also with flags and high bits."""
    calls = [
        ("socket", 2, 3, 1),
        ("socket", 2, 3 | 0o2000000, 255),
        ("socket", 10, 3, 58),
        ("socket", 2, 3 | 1 << 32, 1),
    ]
    return native.refuse_all(calls)


@attack(CATEGORY, _NAMESPACE)
def an_abstract_socket_of_the_host(facts: Facts) -> str:
    """CVE-2020-15257 of containerd: abstract Unix sockets go by network namespace."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_QUICK)
        with suppress(ConnectionRefusedError, FileNotFoundError):
            probe.connect("\0" + facts["abstract"])
            raise GotThrough(f"connected to @{facts['abstract']}")
    return "connect: ECONNREFUSED"


@attack(CATEGORY, "root directory of its own")
def a_unix_socket_of_the_host(facts: Facts) -> str:
    """The engine's sockets and those of the host's services."""
    for path in facts["sockets"]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_QUICK)
            with suppress(OSError):
                probe.connect(path)
                raise GotThrough(f"connected to {path}")
    return f"{len(facts['sockets'])} sockets of the host are not there"
