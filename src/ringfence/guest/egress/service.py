"""What programs in the sandbox meet when they use the network: a name server, and a way out for TCP."""

import asyncio
import contextlib
import ctypes
import socket
import struct

from ringfence.guest.egress import dns
from ringfence.guest.egress.gate import Gate, GateClosedError
from ringfence.guest.egress.names import Names, is_synthetic

DNS_PORT = 53
_MAX_MESSAGE = 4096
_MAX_QUESTIONS = 256
_PATIENCE = 0.8
"""Seconds until a question is answered before the host has: resolvers ask again, or give up, after one."""
_TCP_IDLE_SECONDS = 30.0
_PACKET_INFO = struct.Struct("=I4s4s")
_IP_PKTINFO = 8
_RESET = struct.pack("ii", 1, 0)
_LIBC = ctypes.CDLL(None)
_SOCKADDR_SIZE = 16


class EgressService:
    """Answers DNS on every address, and hands the connections of `intake` to the host."""

    def __init__(self, gate: Gate, names: Names, intake: socket.socket | None) -> None:
        self._gate = gate
        self._names = names
        self._intake = intake
        self._questions: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start serving; the listeners last as long as the process."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):  # without IPv4 ports below 1024 there is just no name server
            udp = _dns_socket(socket.SOCK_DGRAM)
            udp.setsockopt(socket.SOL_IP, _IP_PKTINFO, 1)
            loop.add_reader(udp, self._on_datagram, udp)
            await asyncio.start_server(self._on_dns_stream, sock=_dns_socket(socket.SOCK_STREAM))
        if self._intake is not None:
            self._intake.setblocking(False)
            loop.add_reader(self._intake, self._on_connection, self._intake)

    # TCP

    def _on_connection(self, intake: socket.socket) -> None:
        try:
            connection, _ = intake.accept()
        except OSError:
            return
        address, port = connection.getsockname()[:2]
        if (address, port) == intake.getsockname():
            reset(connection)  # somebody looked for us, not for a way out
            return
        host = self._names.name_of(address) if is_synthetic(address) else address
        if host is None:
            reset(connection)
            return
        with contextlib.suppress(GateClosedError):
            self._gate.hand_over(connection, host, port)

    # DNS

    def _on_datagram(self, udp: socket.socket) -> None:
        try:
            data, ancillary, _, client = udp.recvmsg(_MAX_MESSAGE, 64)
        except OSError:
            return
        if len(self._questions) >= _MAX_QUESTIONS:
            return
        task = asyncio.ensure_future(self._answer_datagram(udp, data, ancillary, client))
        self._questions.add(task)
        task.add_done_callback(self._questions.discard)

    async def _answer_datagram(
        self,
        udp: socket.socket,
        data: bytes,
        ancillary: list[tuple[int, int, bytes]],
        client: tuple[str, int],
    ) -> None:
        answer = await self.answer(data)
        if answer is None:
            return
        # The answer must come from the address that was asked.
        source = next((item for level, kind, item in ancillary if (level, kind) == (0, _IP_PKTINFO)), b"")
        control = []
        if len(source) == _PACKET_INFO.size:
            _, _, asked = _PACKET_INFO.unpack(source)
            control = [(socket.SOL_IP, _IP_PKTINFO, _PACKET_INFO.pack(0, asked, bytes(4)))]
        with contextlib.suppress(OSError):
            udp.sendmsg([answer], control, 0, client)

    async def _on_dns_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                async with asyncio.timeout(_TCP_IDLE_SECONDS):
                    (length,) = struct.unpack(">H", await reader.readexactly(2))
                    data = await reader.readexactly(length)
                answer = await self.answer(data)
                if answer is None:
                    return
                writer.write(struct.pack(">H", len(answer)) + answer)
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    async def answer(self, data: bytes) -> bytes | None:
        """The answer to a DNS message, None when it deserves none."""
        try:
            question = dns.parse(data)
        except dns.BadMessageError as error:
            return None if error.code is None else dns.refusal(data, error.code)
        verdict = await self._verdict(question.name)
        if verdict == "failed":
            return dns.answer(question, dns.SERVER_FAILURE)
        if verdict != "ok":
            return dns.answer(question, dns.NO_SUCH_NAME)
        if question.kind not in (dns.A, dns.ANY):
            return dns.answer(question, dns.NO_ERROR)
        return dns.answer(question, dns.NO_ERROR, self._names.address_of(question.name))

    async def _verdict(self, name: str) -> str:
        if not name:
            return "none"
        asking = asyncio.ensure_future(self._gate.ask(name))
        try:
            done, _ = await asyncio.wait({asking}, timeout=_PATIENCE)
            if done:
                return asking.result()
            # The host is still looking the name up, so it is one that may be reached.
            asking.add_done_callback(_forget)
            return "ok"
        except (GateClosedError, TimeoutError):
            return "failed"


def _forget(task: "asyncio.Task[str]") -> None:
    if not task.cancelled():
        task.exception()


def _dns_socket(kind: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind)
    sock.setblocking(False)
    if kind == socket.SOCK_STREAM:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("0.0.0.0" if kind == socket.SOCK_DGRAM else "127.0.0.1", DNS_PORT))  # noqa: S104 - a sandbox
    return sock


def reset(connection: socket.socket) -> None:
    """Close a connection so that its client sees an error, not an end.

    By `connect` to no address (connect(2), AF_UNSPEC), because the sandbox's filter lets SO_LINGER have no
    effect; gVisor has it the other way round.
    """
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    _LIBC.connect(connection.fileno(), bytes(_SOCKADDR_SIZE), _SOCKADDR_SIZE)
    connection.close()
