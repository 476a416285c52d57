"""Holds a connection to the name it was allowed for, whatever its port.

An address may serve many names, so a connection that was allowed by a name could ask for another one there.
What the client sends is therefore looked at before it is passed on: a TLS handshake must name the host (SNI)
in the clear and hide no other name (encrypted ClientHello), and each plain HTTP/1 request must be for the
host. Anything else (SSH, a database) names nobody and passes.
"""

import re
from typing import Protocol
from urllib.parse import urlsplit

import httptools

_MAX_HELLO = 64 * 1024
_TLS_HANDSHAKE, _CLIENT_HELLO = 22, 1
_SERVER_NAME, _ENCRYPTED_HELLO, _OLD_ENCRYPTED_SNI = 0, 0xFE0D, 0xFFCE
_HTTP, _HTTPS = 80, 443
_HTTP_LINE = re.compile(rb".*[ \t]HTTP/[0-9.]+[ \t]*\r?", re.IGNORECASE | re.DOTALL)
_WORD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_MAX_WORD = 256
_HTTP2_PREFACE = b"PRI * HTTP/2"
_SWITCHING = re.compile(rb"HTTP/1\.1 101[ \r]")


class ForgedNameError(Exception):
    """The connection is for another name than it was allowed for, or hides its name. The message says so."""


class Inspector(Protocol):
    """Looks at what the client sends, and where that takes it at what the server answers."""

    def from_client(self, data: bytes) -> bytes:
        """What may be passed on now; the rest is kept. Raises ForgedNameError."""

    def from_server(self, data: bytes) -> bytes:
        """What was kept of the client's, and may be passed on after the server's `data`."""


class Inspection:
    """An inspector for one connection to `host`; the kind of conversation shows in its first bytes."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._kept = b""
        self._passed = 0
        self._http: _HttpRequests | None = None
        self._done = False

    def from_client(self, data: bytes) -> bytes:
        """See `Inspector`."""
        if self._done:
            return data
        if self._http is not None:
            return self._http.feed(data)
        self._kept += data
        if self._kept[0] == _TLS_HANDSHAKE:
            return self._tls()
        if self._port == _HTTPS:
            raise ForgedNameError("on port 443 it does not start with a TLS handshake")
        kind = is_http(self._kept) if self._port != _HTTP else True
        if kind is None:
            # It may be a client that sends a word and waits. A server cannot act on part of a request, so
            # this much may pass before it is known whether it becomes one.
            self._passed = len(self._kept)
            return data
        if not kind:
            return self._pass()
        self._http = _HttpRequests(self._host)
        kept, self._kept = self._kept, b""
        return self._http.feed(kept)[self._passed :]

    def from_server(self, data: bytes) -> bytes:
        """See `Inspector`."""
        return self._http.switched(data) if self._http is not None else b""

    def _pass(self) -> bytes:
        self._done = True
        kept, self._kept = self._kept, b""
        return kept[self._passed :]

    def _tls(self) -> bytes:
        hello = client_hello(self._kept)
        if hello is None:
            if len(self._kept) > _MAX_HELLO:
                raise ForgedNameError("its TLS handshake is too long to be read")
            return b""
        name, hidden = hello
        if hidden:
            raise ForgedNameError("its TLS handshake has an encrypted part that may hide another name (ECH)")
        if name is None:
            raise ForgedNameError("its TLS handshake names no host (SNI)")
        if name != self._host:
            raise ForgedNameError(f"its TLS handshake is for {name[:253]!r} (SNI)")
        return self._pass()


def is_http(start: bytes) -> bool | None:
    """Whether a conversation starts with an HTTP request; None: more bytes are needed.

    Servers skip empty lines before a request, some take any word for a method and any byte in a path. So what
    begins with a word and a space is only told by the end of its line.
    """
    start = start.lstrip(b"\r\n\t ")
    word = _WORD.match(start)
    rest = start[word.end() :] if word else start
    if not rest:
        return None if len(start) <= _MAX_WORD else False
    if word is None or rest[0] not in b" \t":
        return False
    line, end, _ = start.partition(b"\n")
    if end:
        return _HTTP_LINE.fullmatch(line) is not None
    if len(start) > _MAX_HELLO:
        raise ForgedNameError("its first line is too long to be read")
    return None


class _HttpRequests:
    """The requests of one connection, checked one after the other by a real parser."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._hosts: list[bytes] = []
        self._count = 0
        self._protocol = b""
        self._waiting = b""
        self._upgrading = False
        self._open = False

    def feed(self, data: bytes) -> bytes:
        if self._open:
            return data
        if self._upgrading:
            self._waiting += data
            if len(self._waiting) > _MAX_HELLO:
                raise ForgedNameError("it does not wait for its change of protocol")
            return b""
        if data.startswith(_HTTP2_PREFACE):
            raise ForgedNameError("unencrypted HTTP/2 can be for any name")
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return self._upgrade(data, upgrade.args[0])
        except httptools.HttpParserCallbackError as error:
            raise _cause(error) from None
        except httptools.HttpParserError as error:
            raise ForgedNameError(f"its HTTP request cannot be understood ({error})") from None
        return data

    def switched(self, data: bytes) -> bytes:
        """After an upgrade: what was kept, when the server has agreed to it."""
        if not self._upgrading:
            return b""
        self._upgrading = False
        if not _SWITCHING.match(data):
            raise ForgedNameError("it goes on after the server refused to change the protocol")
        self._open = True
        waiting, self._waiting = self._waiting, b""
        return waiting

    def _upgrade(self, data: bytes, end: int) -> bytes:
        # Only the first request: then the first answer tells whether the server agreed.
        if self._count != 1 or b"h2c" in self._protocol.lower():
            raise ForgedNameError("it changes to a protocol that can be for any name")
        self._upgrading = True
        self._waiting = data[end:]
        return data[:end]

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        self._url, self._hosts, self._protocol = b"", [], b""
        self._count += 1

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"host":
            self._hosts.append(value)
        elif name.lower() == b"upgrade":
            self._protocol = value

    def on_headers_complete(self) -> None:
        if self._parser.get_method() == b"CONNECT":
            raise ForgedNameError("it asks for a tunnel (CONNECT)")
        if len(self._hosts) != 1:
            raise ForgedNameError("its HTTP request does not name one host")
        named = [self._hosts[0]]
        if not self._url.startswith((b"/", b"*")):
            named.append(urlsplit(self._url).netloc)
        for authority in named:
            if host_in(authority) != self._host:
                raise ForgedNameError(f"its HTTP request is for {authority[:253]!r} (Host)")


def _cause(error: Exception) -> ForgedNameError:
    """What a callback raised, which the parser hands on in one form or another."""
    for candidate in (error.__context__, error.__cause__, *error.args):
        if isinstance(candidate, ForgedNameError):
            return candidate
    return ForgedNameError("its HTTP request cannot be understood")


def host_in(authority: bytes) -> str:
    """The host of a ``Host`` field, as a rule would have it."""
    text = authority.decode("latin-1").strip().lower()
    host, colon, port = text.rpartition(":")
    return (host if colon and port.isdigit() else text).removesuffix(".")


def client_hello(data: bytes) -> tuple[str | None, bool] | None:
    """The server name in a TLS ClientHello, and whether a part is encrypted; None: more bytes are needed.

    Raises ForgedNameError for what is no ClientHello.
    """
    message = _handshake(data)
    if message is None:
        return None
    try:
        return _read_extensions(message)
    except IndexError:
        raise ForgedNameError("its TLS handshake cannot be understood") from None


def _handshake(data: bytes) -> bytes | None:
    """The first handshake message, put together from its records."""
    message, offset = b"", 0
    while offset + 5 <= len(data):
        if data[offset] != _TLS_HANDSHAKE:
            raise ForgedNameError("its TLS handshake cannot be understood")
        length = int.from_bytes(data[offset + 3 : offset + 5])
        message += data[offset + 5 : offset + 5 + length]
        offset += 5 + length
        if message and message[0] != _CLIENT_HELLO:
            raise ForgedNameError("its TLS handshake does not start with a ClientHello")
        if len(message) >= 4 and len(message) >= 4 + int.from_bytes(message[1:4]):
            return message[4 : 4 + int.from_bytes(message[1:4])]
    return None


def _read_extensions(hello: bytes) -> tuple[str | None, bool]:
    offset = 2 + 32  # version, random
    offset += 1 + hello[offset]  # session id
    offset += 2 + _two(hello, offset)  # cipher suites
    offset += 1 + hello[offset]  # compression methods
    if offset == len(hello):
        return None, False
    end = offset + 2 + _two(hello, offset)
    offset += 2
    name: str | None = None
    hidden = False
    while offset < end:
        kind, length = _two(hello, offset), _two(hello, offset + 2)
        body = hello[offset + 4 : offset + 4 + length]
        offset += 4 + length
        if kind == _SERVER_NAME:
            if name is not None:
                raise IndexError
            name = _server_name(body)
        hidden = hidden or kind in (_ENCRYPTED_HELLO, _OLD_ENCRYPTED_SNI)
    if offset != end or end != len(hello):
        raise IndexError
    return name, hidden


def _server_name(body: bytes) -> str:
    """The one host name of the extension (RFC 6066 allows no second one of the same type)."""
    if _two(body, 0) != len(body) - 2 or body[2] != 0 or _two(body, 3) != len(body) - 5:
        raise IndexError
    return body[5:].decode("latin-1").lower().removesuffix(".")


def _two(data: bytes, offset: int) -> int:
    if offset + 2 > len(data):
        raise IndexError
    return data[offset] << 8 | data[offset + 1]
