"""Which requests go to a sandbox, and which names the control plane answers to."""

import pytest

from ringfence.server.errors import ApiError
from ringfence.server.routing import HostPolicy, Target, target_of

ID = "i" + "a1" * 12


def headers(**values: str) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value.encode()) for name, value in values.items()]


@pytest.mark.parametrize(
    "host",
    [f"8000-{ID}.sbx.test", f"8000-{ID}.SBX.test:443", f"8000-{ID}.localhost:3000", f"8000-{ID}.sbx.test."],
)
def test_by_host(host: str) -> None:
    assert target_of(headers(host=host), "sbx.test") == Target(ID, 8000)


def test_by_headers() -> None:
    given = headers(host="127.0.0.1:3000", e2b_sandbox_id=ID, e2b_sandbox_port="49983")
    assert target_of(given, "sbx.test") == Target(ID, 49983)


@pytest.mark.parametrize(
    "host", ["127.0.0.1:3000", "localhost", "api.sbx.test", f"8000-{ID}.evil.test", "[::1]:3000"]
)
def test_everything_else_is_for_the_control_plane(host: str) -> None:
    assert target_of(headers(host=host), "sbx.test") is None


def test_an_impossible_id_is_no_sandbox() -> None:
    given = headers(host="x", e2b_sandbox_id="../../etc", e2b_sandbox_port="80")
    assert target_of(given, "sbx.test") == Target("", 80)


@pytest.mark.parametrize(
    "given",
    [
        headers(host="x", e2b_sandbox_id=ID),
        headers(host="x", e2b_sandbox_port="80"),
        headers(host="x", e2b_sandbox_id=ID, e2b_sandbox_port="0"),
        headers(host="x", e2b_sandbox_id=ID, e2b_sandbox_port="65536"),
        headers(host="x", e2b_sandbox_id=ID, e2b_sandbox_port="٣"),
        headers(host=f"99999-{ID}.sbx.test"),
        [*headers(host="x", e2b_sandbox_id=ID, e2b_sandbox_port="80"), (b"e2b-sandbox-port", b"81")],
        [*headers(host="a"), *headers(host="b")],
        headers(host="a b"),
    ],
)
def test_what_contradicts_itself_is_refused(given: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(ApiError) as caught:
        target_of(given, "sbx.test")
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "host",
    [
        "localhost:3000",
        "127.0.0.1",
        "[::1]:3000",
        "10.1.2.3",
        "ringfence",
        "sbx.test",
        "api.sbx.test",
        "Own.Name",
    ],
)
def test_names_that_are_ours(host: str) -> None:
    HostPolicy("sbx.test", ("own.name",)).check(headers(host=host))


@pytest.mark.parametrize("host", ["evil.test", "127.0.0.1.evil.test", "sbx.test.evil"])
def test_names_that_are_not(host: str) -> None:
    with pytest.raises(ApiError) as caught:
        HostPolicy("sbx.test", ()).check(headers(host=host))
    assert caught.value.status == 403


@pytest.mark.parametrize(
    ("origin", "known"),
    [
        ("http://localhost:3000", True),
        ("http://127.0.0.1:5173", True),
        ("https://sbx.test", True),
        ("http://evil.test", False),
        ("null", False),
        ("file://", False),
        (f"http://8000-{ID}.localhost:3000", False),
    ],
)
def test_origins(origin: str, known: bool) -> None:
    policy = HostPolicy("sbx.test", ())
    given = headers(host="localhost", origin=origin)
    if known:
        policy.check(given)
    else:
        with pytest.raises(ApiError):
            policy.check(given)
