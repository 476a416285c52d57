"""Just enough of netlink to add a route and a small nftables table, so that no binary is needed for it.

Names and numbers are the kernel's (``include/uapi/linux/{netlink,rtnetlink}.h``,
``include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h``). Everything of nftables is in network byte order.
"""

import os
import socket
import struct

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_EXCL, _NLM_F_CREATE, _NLM_F_APPEND = 0x1, 0x4, 0x200, 0x400, 0x800
_NLMSG_ERROR = 2
_NLA_F_NESTED = 0x8000
_HEADER = struct.Struct("=IHHII")

_RTM_NEWROUTE = 24
_RT_TABLE_LOCAL, _RTPROT_KERNEL, _RT_SCOPE_HOST, _RTN_LOCAL = 255, 2, 254, 2
_RTA_OIF, _RTA_PREFSRC = 4, 7

_NFNL_SUBSYS_NFTABLES = 10
_NFNL_MSG_BATCH_BEGIN, _NFNL_MSG_BATCH_END = 0x10, 0x11
_NFT_MSG_NEWTABLE, _NFT_MSG_NEWCHAIN, _NFT_MSG_NEWRULE = 0, 3, 6
_NFPROTO_IPV4 = 2
_NFT_REG_VERDICT, _REG_1, _REG_2 = 0, 1, 2
NF_DROP, NF_ACCEPT = 0, 1
NF_INET_PRE_ROUTING, NF_INET_LOCAL_OUT = 0, 3
_NFT_META_L4PROTO = 16
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2

Expressions = tuple[bytes, ...]


def request(protocol: int, messages: list[bytes], replies: int) -> None:
    """Send messages in one packet and wait for `replies` acknowledgements; OSError for the first refusal."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as netlink:
        netlink.bind((0, 0))
        netlink.send(b"".join(messages))
        while replies > 0:
            replies -= _acknowledged(netlink.recv(1 << 16))


def _acknowledged(data: bytes) -> int:
    count = offset = 0
    while offset < len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
        if kind == _NLMSG_ERROR:
            (code,) = struct.unpack_from("=i", data, offset + _HEADER.size)
            if code:
                raise OSError(-code, f"netlink message {sequence}: {os.strerror(-code)}")
            count += 1
        offset += length + -length % 4
    return count


def _message(kind: int, flags: int, body: bytes, sequence: int) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | flags, sequence, 0) + body


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _nested(kind: int, *attributes: bytes) -> bytes:
    return _attribute(kind | _NLA_F_NESTED, b"".join(attributes))


def _name(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack(">I", value & 0xFFFFFFFF))


def add_local_default_route(interface: int, source: str) -> None:
    """``ip route add local 0.0.0.0/0 dev INTERFACE src SOURCE table local``: every address is one's own."""
    route = struct.pack(
        "=8BI", socket.AF_INET, 0, 0, 0, _RT_TABLE_LOCAL, _RTPROT_KERNEL, _RT_SCOPE_HOST, _RTN_LOCAL, 0
    )
    body = (
        route
        + _attribute(_RTA_OIF, struct.pack("=I", interface))
        + _attribute(_RTA_PREFSRC, socket.inet_aton(source))
    )
    message = _message(_RTM_NEWROUTE, _NLM_F_ACK | _NLM_F_CREATE | _NLM_F_EXCL, body, 1)
    request(NETLINK_ROUTE, [message], 1)


class Table:
    """An nftables table of family ``ip`` in the making; `commit` installs it as a whole or not at all."""

    def __init__(self, name: str) -> None:
        self._table = name
        self._messages: list[bytes] = []
        self._add(_NFT_MSG_NEWTABLE, 0, _name(1, name))

    def chain(self, name: str, hook: int, priority: int) -> None:
        """Add a chain of type ``filter`` that accepts by default."""
        where = _nested(4, _number(1, hook), _attribute(2, struct.pack(">i", priority)))
        self._add(_NFT_MSG_NEWCHAIN, 0, _name(1, self._table), _name(3, name), where, _name(7, "filter"))

    def rule(self, chain: str, *parts: Expressions) -> None:
        """Add a rule at the end of a chain; its `parts` are made by the functions below."""
        expressions = [expression for part in parts for expression in part]
        self._add(
            _NFT_MSG_NEWRULE, _NLM_F_APPEND, _name(1, self._table), _name(2, chain), _nested(4, *expressions)
        )

    def commit(self) -> None:
        """Install the table. Raises OSError when the kernel lacks a part of it."""
        edge = struct.pack(">BBH", 0, 0, _NFNL_SUBSYS_NFTABLES)
        first = _message(_NFNL_MSG_BATCH_BEGIN, 0, edge, 0)
        last = _message(_NFNL_MSG_BATCH_END, 0, edge, len(self._messages) + 1)
        request(NETLINK_NETFILTER, [first, *self._messages, last], len(self._messages))

    def _add(self, kind: int, flags: int, *attributes: bytes) -> None:
        body = struct.pack(">BBH", _NFPROTO_IPV4, 0, 0) + b"".join(attributes)
        number = _NFNL_SUBSYS_NFTABLES << 8 | kind
        flags |= _NLM_F_CREATE | _NLM_F_ACK
        self._messages.append(_message(number, flags, body, len(self._messages) + 1))


def _expression(name: str, *attributes: bytes) -> bytes:
    return _nested(1, _name(1, name), _nested(2, *attributes))


def _equals(value: bytes) -> bytes:
    return _expression("cmp", _number(1, _REG_1), _number(2, 0), _nested(3, _attribute(1, value)))


def _payload(header: int, offset: int, length: int) -> bytes:
    return _expression(
        "payload", _number(1, _REG_1), _number(2, header), _number(3, offset), _number(4, length)
    )


def _immediate(register: int, value: bytes) -> bytes:
    return _expression("immediate", _number(1, register), _nested(2, _attribute(1, value)))


def to_loopback() -> Expressions:
    """Match packets to 127.0.0.0/8."""
    mask = _expression(
        "bitwise",
        *(_number(1, _REG_1), _number(2, _REG_1), _number(3, 4)),
        *(_nested(4, _attribute(1, b"\xff\0\0\0")), _nested(5, _attribute(1, bytes(4)))),
    )
    return (_payload(_NETWORK_HEADER, 16, 4), mask, _equals(b"\x7f\0\0\0"))


def protocol_is(number: int) -> Expressions:
    """Match packets of an IP protocol."""
    meta = _expression("meta", _number(1, _REG_1), _number(2, _NFT_META_L4PROTO))
    return (meta, _equals(bytes([number])))


def port_is(port: int) -> Expressions:
    """Match the destination port; after `protocol_is` of TCP or UDP."""
    return (_payload(_TRANSPORT_HEADER, 2, 2), _equals(struct.pack(">H", port)))


def hand_to_listener(address: str, port: int) -> Expressions:
    """Let the (transparent) listener on this address have the connection, its addresses unchanged."""
    tproxy = _expression("tproxy", _number(1, _NFPROTO_IPV4), _number(2, _REG_1), _number(3, _REG_2))
    return (
        _immediate(_REG_1, socket.inet_aton(address)),
        _immediate(_REG_2, struct.pack(">H", port)),
        tproxy,
    )


def verdict(code: int) -> Expressions:
    """End with `NF_ACCEPT` or `NF_DROP`; a dropped packet of one's own is EPERM to its sender."""
    value = _nested(2, _number(1, code))
    return (_expression("immediate", _number(1, _NFT_REG_VERDICT), _nested(2, value)),)
