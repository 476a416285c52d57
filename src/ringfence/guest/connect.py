"""The Connect protocol (https://connectrpc.com/docs/protocol) with JSON messages, server side, on ASGI.

Only what E2B's SDKs send is spoken: unary calls as ``application/json`` and streams as
``application/connect+json``, uncompressed. Unlike the generic libraries this one

- enforces ``Connect-Timeout-Ms`` (a client that never fires its own deadline still gets
  ``deadline_exceeded``),
- notices at once that the client of a stream has hung up, and closes the handler's iterator,
- stops calling the handler while the client does not read (the server's flow control is awaited).

Handlers are plain coroutines and async generators over `Message` dictionaries; they raise `ConnectError`.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

Message = dict[str, Any]

UNARY_TYPE = "application/json"
STREAM_TYPE = "application/connect+json"

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""The longest message that is accepted, in bytes of JSON."""

_DISCARD_BYTES = 256 * 1024
_HEADER_BYTES = 5
_END_STREAM = 0x02
_COMPRESSED = 0x01

HTTP_STATUS = {
    "canceled": 499,
    "unknown": 500,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 400,
    "aborted": 409,
    "out_of_range": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "data_loss": 500,
    "unauthenticated": 401,
}


class ConnectError(Exception):
    """An answer other than success: `code` is one of the protocol's names (see `HTTP_STATUS`)."""

    def __init__(self, code: str, message: str) -> None:
        """Make an error that the client sees as `code` and `message`."""
        super().__init__(message)
        self.code = code
        self.message = message

    def as_message(self) -> Message:
        """The error as the protocol's JSON object."""
        return {"code": self.code, "message": self.message}


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `deadline` is in seconds of the event loop's clock; None: the client set no limit."""

    headers: Headers
    deadline: float | None = None


Unary = Callable[[Message, Call], Awaitable[Message]]
ServerStream = Callable[[Message, Call], AsyncIterator[Message]]
ClientStream = Callable[[AsyncIterator[Message], Call], Awaitable[Message]]


def encode(message: Message) -> bytes:
    """`message` as compact JSON in ASCII, so that no client splits a line at an exotic separator."""
    return json.dumps(message, separators=(",", ":")).encode("ascii")


def decode(body: bytes) -> Message:
    """The JSON object in `body`; an empty body is an empty message. Raises `ConnectError`."""
    if not body:
        return {}
    try:
        # Decoded here: json would guess UTF-16 or 32, whose codecs cannot be imported any more.
        message = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConnectError("invalid_argument", f"unmarshal message: {error}") from None
    if not isinstance(message, dict):
        raise ConnectError("invalid_argument", "unmarshal message: not a JSON object")
    return message


def envelope(flags: int, payload: bytes) -> bytes:
    """One frame of a stream: a byte of flags, the length in four bytes (big endian), the payload."""
    return bytes((flags,)) + len(payload).to_bytes(4, "big") + payload


class Frames:
    """Cuts an incoming body into frames. Never holds more than one message and one network chunk."""

    def __init__(self, receive: Receive) -> None:
        """Read from `receive`, the ASGI channel of a request whose body was not yet touched."""
        self._receive = receive
        self._buffer = bytearray()
        self._ended = False

    async def __aiter__(self) -> AsyncIterator[Message]:
        """Yield each message; raises what `next` does."""
        while (message := await self.next()) is not None:
            yield message

    async def next(self) -> Message | None:
        """The next message, None after the last. Raises `ConnectError` if broken, too long or cut off."""
        if not await self._fill(_HEADER_BYTES):
            return None
        flags, length = self._buffer[0], int.from_bytes(self._buffer[1:_HEADER_BYTES], "big")
        if flags & _COMPRESSED:
            raise ConnectError("unimplemented", "compressed messages are not supported")
        if length > MAX_MESSAGE_BYTES:
            raise ConnectError("resource_exhausted", f"message of {length} bytes is too long")
        await self._fill(_HEADER_BYTES + length)
        payload = bytes(self._buffer[_HEADER_BYTES : _HEADER_BYTES + length])
        del self._buffer[: _HEADER_BYTES + length]
        return None if flags & _END_STREAM else decode(payload)

    async def _fill(self, size: int) -> bool:
        while len(self._buffer) < size:
            if self._ended:
                if self._buffer:
                    raise ConnectError("invalid_argument", "the stream ended within a message")
                return False
            event = await self._receive()
            if event["type"] == "http.disconnect":
                raise ConnectError("canceled", "the client hung up")
            self._buffer += event.get("body", b"")
            self._ended = not event.get("more_body", False)
        return True


def _call(scope: Scope) -> Call:
    headers = Headers(scope=scope)
    timeout = headers.get("connect-timeout-ms", "")
    if not timeout.isascii() or not timeout.isdigit() or len(timeout) > 10:
        return Call(headers)
    return Call(headers, asyncio.get_running_loop().time() + int(timeout) / 1000)


async def _answer(send: Send, status: int, body: bytes, content_type: str) -> None:
    headers = [(b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _refused(scope: Scope, send: Send, content_type: str) -> bool:
    """Answer what is not a POST of `content_type`, as the protocol wants it; True when answered."""
    if scope["method"] != "POST":
        await _answer(send, 405, b"", "text/plain")
        return True
    given = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
    if given != content_type:
        await _answer(send, 415, b"", "text/plain")
        return True
    return False


async def _read_body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ConnectError("canceled", "the client hung up")
        body += event.get("body", b"")
        if len(body) > MAX_MESSAGE_BYTES:
            raise ConnectError("resource_exhausted", "the message is too long")
        if not event.get("more_body", False):
            return bytes(body)


async def discard_body(receive: Receive) -> None:
    """Read some of an unwanted body, because a client that is still sending may never see the answer."""
    size = 0
    while size < _DISCARD_BYTES:
        event = await receive()
        size += len(event.get("body", b"")) + 1
        if event["type"] == "http.disconnect" or not event.get("more_body", False):
            return


def _deadline_exceeded() -> ConnectError:
    return ConnectError("deadline_exceeded", "the deadline of the request was exceeded")


class UnaryEndpoint:
    """The ASGI application of one unary method."""

    def __init__(self, handler: Unary) -> None:
        """Serve `handler`."""
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if await _refused(scope, send, UNARY_TYPE):
            return
        call = _call(scope)
        try:
            encoding = call.headers.get("content-encoding", "identity")
            if encoding != "identity":
                raise ConnectError("unimplemented", f"content encoding {encoding!r} is not supported")
            async with asyncio.timeout_at(call.deadline):
                reply = await self._handler(decode(await _read_body(receive)), call)
        except TimeoutError:
            await self._fail(send, _deadline_exceeded())
        except ConnectError as error:
            await self._fail(send, error)
        else:
            await _answer(send, 200, encode(reply), UNARY_TYPE)

    async def _fail(self, send: Send, error: ConnectError) -> None:
        await _answer(send, HTTP_STATUS[error.code], encode(error.as_message()), UNARY_TYPE)


async def _start_stream(send: Send) -> None:
    headers = [(b"content-type", STREAM_TYPE.encode()), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _end_stream(send: Send, error: ConnectError | None, before: bytes = b"") -> None:
    trailer = encode({} if error is None else {"error": error.as_message()})
    body = before + envelope(_END_STREAM, trailer)
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def until_hang_up(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Run `work`, but no longer than the client of a request (whose body was read) stays on the line."""
    task = asyncio.create_task(work)
    client = asyncio.create_task(_hung_up(receive))
    try:
        await asyncio.wait({task, client}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        client.cancel()
        if not task.done():
            task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def refuse(scope: Scope, receive: Receive, send: Send, error: ConnectError) -> None:
    """Answer a call of either kind, stream or not, with `error`. Its body is not looked at."""
    await discard_body(receive)
    if Headers(scope=scope).get("content-type", "").startswith(STREAM_TYPE):
        await _start_stream(send)
        await _end_stream(send, error)
    else:
        await _answer(send, HTTP_STATUS[error.code], encode(error.as_message()), UNARY_TYPE)


class ServerStreamEndpoint:
    """The ASGI application of one method that answers with a stream."""

    def __init__(self, handler: ServerStream) -> None:
        """Serve `handler`; its iterator is closed when the client hangs up or the deadline passes."""
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if await _refused(scope, send, STREAM_TYPE):
            return
        call = _call(scope)
        # The head goes out only now: clients may drop a body they have not sent yet when an answer comes.
        try:
            request = await self._request(receive)
        except ConnectError as error:
            await _start_stream(send)
            await _end_stream(send, error)
            return
        await _start_stream(send)
        await until_hang_up(self._pump(request, call, send), receive)

    async def _request(self, receive: Receive) -> Message:
        message = await Frames(receive).next()
        if message is None:
            raise ConnectError("invalid_argument", "the request has no message")
        return message

    async def _pump(self, request: Message, call: Call, send: Send) -> None:
        error: ConnectError | None = None
        events = self._handler(request, call)
        try:
            async with asyncio.timeout_at(call.deadline):
                async for event in events:
                    body = envelope(0, encode(event))
                    await send({"type": "http.response.body", "body": body, "more_body": True})
        except TimeoutError:
            error = _deadline_exceeded()
        except ConnectError as raised:
            error = raised
        finally:
            if (close := getattr(events, "aclose", None)) is not None:
                await close()
        await _end_stream(send, error)


class ClientStreamEndpoint:
    """The ASGI application of one method that takes a stream and answers once."""

    def __init__(self, handler: ClientStream) -> None:
        """Serve `handler`."""
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if await _refused(scope, send, STREAM_TYPE):
            return
        call = _call(scope)
        before, error = b"", None
        try:
            async with asyncio.timeout_at(call.deadline):
                before = envelope(0, encode(await self._handler(aiter(Frames(receive)), call)))
        except TimeoutError:
            error = _deadline_exceeded()
        except ConnectError as raised:
            error = raised
        await _start_stream(send)
        await _end_stream(send, error, before)
