"""Which headers reach a sandbox and which come back."""

import base64
import functools

from ringfence.server.headers import ENVD_PORT, Headers, to_client, to_guest
from ringfence.server.keys import Keys, digest_of, holds_key

KEY = b"e2b_" + b"0123456789abcdef" * 2


def names(headers: Headers) -> set[bytes]:
    return {name for name, _ in headers}


REQUEST: Headers = [
    (b"host", b"8000-x.sbx.test"),
    (b"x-api-key", KEY),
    (b"x-access-token", b"t"),
    (b"e2b-traffic-access-token", b"t"),
    (b"e2b-sandbox-id", b"x"),
    (b"e2b-sandbox-port", b"8000"),
    (b"authorization", b"Basic dXNlcjo="),
    (b"connection", b"close, X-Hop"),
    (b"x-hop", b"1"),
    (b"transfer-encoding", b"chunked"),
    (b"content-length", b"5"),
    (b"accept", b"*/*"),
]


def test_envd_keeps_its_token_and_learns_the_port() -> None:
    sent = to_guest(REQUEST, ENVD_PORT, None)
    assert names(sent) == {
        b"host",
        b"x-access-token",
        b"e2b-traffic-access-token",
        b"e2b-sandbox-id",
        b"authorization",
        b"accept",
        b"e2b-sandbox-port",
    }
    assert (b"e2b-sandbox-port", b"49983") in sent


def test_user_code_gets_no_token_of_ours() -> None:
    assert names(to_guest(REQUEST, 8000, None)) == {b"host", b"authorization", b"accept"}


def test_an_api_key_never_reaches_user_code_whatever_header_bears_it() -> None:
    given: Headers = [(b"authorization", b"Bearer " + KEY)]
    assert to_guest(given, 8000, None) == []
    assert to_guest([(b"authorization", b"Bearer of-the-app")], 8000, None) != []


def test_no_value_with_a_key_of_the_server_reaches_user_code() -> None:
    key = "chosen by the operator 42".replace(" ", "-")
    keys = Keys([(digest_of(key), "owner")])
    basic = base64.b64encode(f"user:{key}".encode()).decode()
    for value in (key, f"Bearer {key}", f"Basic {basic}", f"a=1; token={key}", f'key="{key}"', f" {key} "):
        assert holds_key(keys, value.encode()), value
        given: Headers = [(b"x-anything", value.encode()), (b"accept", b"*/*")]
        assert names(to_guest(given, 8000, None, functools.partial(holds_key, keys))) == {b"accept"}
    for value in ("", "Bearer " + "x" * 40, "Basic ***", "Basic dXNlcjo=", "\xff" * 50):
        assert not holds_key(keys, value.encode("latin-1")), value


def test_cookies_of_ours_are_taken_out() -> None:
    given: Headers = [
        (b"cookie", b"a=1; ringfence_session=s; b=2"),
        (b"cookie", b"__Host-ringfence_session=s"),
    ]
    assert to_guest(given, 8000, None) == [(b"cookie", b"a=1; b=2")]


def test_the_host_can_be_masked() -> None:
    assert to_guest([(b"host", b"x")], 8000, "app.local:${PORT}") == [(b"host", b"app.local:8000")]


def test_responses() -> None:
    given: Headers = [
        (b"content-type", b"text/plain"),
        (b"connection", b"x-hop"),
        (b"x-hop", b"1"),
        (b"keep-alive", b"timeout=5"),
        (b"upgrade", b"h2c"),
        (b"set-cookie", b"ringfence_session=forged"),
        (b"set-cookie", b"own=1"),
        (b"bad name", b"x"),
        (b"bad-value", b"a\x00b"),
        (b"content-length", b"3"),
    ]
    kept = [(b"content-type", b"text/plain"), (b"set-cookie", b"own=1")]
    assert to_client(200, given) == [*kept, (b"content-length", b"3")]
    assert to_client(304, given) == kept
