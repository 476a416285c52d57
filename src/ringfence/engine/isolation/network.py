"""A sandbox's network namespace: loopback, to which every IPv4 address leads.

There is no interface but ``lo``, so nothing can leave. Every address is declared local, and every TCP
connection to one that is not 127.0.0.0/8 is handed to one listener (netfilter's TPROXY, which needs neither
NAT nor connection tracking). Whoever accepts there reads from the socket where its client meant to go. UDP
to port 53 of any address arrives at whoever is bound to that port; every other UDP packet, and ICMP, is EPERM
to its sender. IPv6 has ``::1`` only: anything else is ENETUNREACH.

All of it needs CAP_NET_ADMIN over the namespace, which only the code that sets a sandbox up has.
"""

import fcntl
import socket
import struct

from . import netlink

_SIOCSIFFLAGS = 0x8914
_IFF_UP_LOOPBACK_RUNNING = 0x1 | 0x8 | 0x40
_IP_TRANSPARENT = 19
_BACKLOG = 1024
_MANGLE, _FILTER = -150, 0
_LOOPBACK = "127.0.0.1"
_DNS = 53


def loopback_up() -> None:
    """Bring ``lo`` up, which a new network namespace has down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", _IFF_UP_LOOPBACK_RUNNING, b""))


def intercept() -> socket.socket:
    """Lead every IPv4 address to loopback; the listener that gets the TCP connections to them.

    Raises OSError when the kernel lacks nftables or its transparent proxying; then there is no route either.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_IP, _IP_TRANSPARENT, 1)
        listener.bind((_LOOPBACK, 0))
        listener.listen(_BACKLOG)
        _table(listener.getsockname()[1]).commit()
        netlink.add_local_default_route(socket.if_nametoindex("lo"), _LOOPBACK)
    except OSError:
        listener.close()
        raise
    return listener


def _table(port: int) -> netlink.Table:
    table = netlink.Table("ringfence")
    accept, drop = netlink.verdict(netlink.NF_ACCEPT), netlink.verdict(netlink.NF_DROP)
    tcp, udp = netlink.protocol_is(socket.IPPROTO_TCP), netlink.protocol_is(socket.IPPROTO_UDP)
    table.chain("arriving", netlink.NF_INET_PRE_ROUTING, _MANGLE)
    table.rule("arriving", netlink.to_loopback(), accept)
    table.rule("arriving", tcp, netlink.hand_to_listener(_LOOPBACK, port), accept)
    table.chain("sending", netlink.NF_INET_LOCAL_OUT, _FILTER)
    table.rule("sending", netlink.to_loopback(), accept)
    table.rule("sending", tcp, accept)
    table.rule("sending", udp, netlink.port_is(_DNS), accept)
    table.rule("sending", drop)
    return table
