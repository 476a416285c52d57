"""E2B's rules, without any network."""

import ipaddress

import pytest

from ringfence.engine.egress.addresses import why_refused
from ringfence.engine.egress.hosts import BadHostError, parse_host
from ringfence.engine.egress.policy import Policy, PolicyError, parse_policy, preset

ALL = "0.0.0.0/0"
INDEXES = (("pypi.org", 443), ("files.pythonhosted.org", 443))


def allows(policy: Policy, host: str, port: int = 443) -> bool:
    """Whether a name is allowed as such, or an address."""
    parsed = parse_host(host)
    if isinstance(parsed, str):
        return policy.judge_name(parsed, port).allowed or not policy.denies_all
    return policy.judge_address(parsed, port).allowed


@pytest.mark.parametrize(
    ("allow", "deny", "internet", "yes", "no"),
    [
        ([], [], None, ["a.com", "8.8.8.8"], []),
        ([], [], True, ["a.com", "8.8.8.8"], []),
        ([], [], False, [], ["a.com", "8.8.8.8"]),
        ([], [ALL], None, [], ["a.com", "8.8.8.8"]),
        ([], ["8.8.8.0/24"], None, ["a.com", "9.9.9.9"], ["8.8.8.8"]),
        (["8.8.8.8"], ["8.8.8.0/24"], None, ["8.8.8.8"], ["8.8.8.9"]),
        (["8.8.8.8"], [ALL], None, ["8.8.8.8"], ["9.9.9.9", "a.com"]),
        ([ALL], [ALL], None, ["8.8.8.8", "a.com"], []),
        (["a.com"], [ALL], None, ["a.com", "A.Com."], ["b.a.com", "xa.com", "8.8.8.8"]),
        (["a.com"], [], False, ["a.com"], ["b.com"]),
        (["*.a.com"], [ALL], None, ["b.a.com", "c.b.a.com"], ["a.com", "ba.com"]),
        (["*"], [ALL], None, ["a.com", "b.org"], ["8.8.8.8"]),
        (["@packages"], [ALL], None, ["pypi.org"], ["a.com"]),
    ],
)
def test_rules(
    allow: list[str], deny: list[str], internet: bool | None, yes: list[str], no: list[str]
) -> None:
    policy = parse_policy(allow, deny, internet, INDEXES)
    assert [host for host in yes if not allows(policy, host)] == []
    assert [host for host in no if allows(policy, host)] == []


def test_ports() -> None:
    policy = parse_policy(["a.com", "b.com:5432", "c.com:*", "9.9.9.9:53", "8.8.8.0/24"], [ALL], None, ())
    yes = [("a.com", 80), ("a.com", 443), ("b.com", 5432), ("c.com", 22), ("9.9.9.9", 53), ("8.8.8.8", 1)]
    no = [("a.com", 22), ("b.com", 443), ("9.9.9.9", 443)]
    assert [case for case in yes if not allows(policy, *case)] == []
    assert [case for case in no if allows(policy, *case)] == []


def test_a_denied_everything_is_everything_of_version_6_too() -> None:
    address = ipaddress.ip_address("2606:4700::1")
    assert not parse_policy([], [ALL], None, ()).judge_address(address, 443).allowed


def test_a_partial_denial_may_not_be_passed_by_version_6() -> None:
    assert parse_policy([], ["8.8.8.0/24"], None, ()).ipv4_only
    assert not parse_policy([], [], None, ()).ipv4_only


def test_names_are_only_looked_up_when_a_name_rule_covers_them() -> None:
    assert parse_policy([], [], None, ()).may_name("a.com")
    assert parse_policy(["*.a.com"], [ALL], None, ()).may_name("b.a.com")
    assert not parse_policy(["8.8.8.8", "a.com"], [ALL], None, ()).may_name("data.b.com")


@pytest.mark.parametrize(
    ("allow", "deny"),
    [
        (["a.com"], []),
        (["a.com"], ["8.8.8.8"]),
        (["a b"], [ALL]),
        (["a.com:0"], [ALL]),
        (["*a.com"], [ALL]),
        (["http://a.com"], [ALL]),
        (["127.1"], [ALL]),
        (["a.com\0.b.com"], [ALL]),
        ([], ["a.com"]),
        (["8.8.8.8"] * 600, []),
    ],
)
def test_rules_without_sense(allow: list[str], deny: list[str]) -> None:
    with pytest.raises(PolicyError):
        parse_policy(allow, deny, None, ())


def test_presets() -> None:
    assert allows(preset("internet", INDEXES), "a.com")
    assert not allows(preset("none", INDEXES), "pypi.org")
    assert allows(preset("packages", INDEXES), "pypi.org")
    assert not allows(preset("packages", INDEXES), "pypi.org", 80)
    listed = preset("packages, a.com, 9.9.9.9", INDEXES)
    assert all(allows(listed, host) for host in ("pypi.org", "a.com", "9.9.9.9"))
    assert not allows(listed, "b.com")


@pytest.mark.parametrize(
    "text",
    ["", ".", "a..b", "-a.com", "a b", "a/b", "a@b", "a%b", "a\0b", "a#b", "é.com", "x" * 64,
     "a." * 130 + "a", "999.1.1.1", "1.2.3.4.5x:", "::g", "fe80::1%eth0:"],
)  # fmt: skip
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(BadHostError):
        parse_host(text)


@pytest.mark.parametrize(
    "text",
    ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "10.1", "169.254.169.254",
     "2852039166", "::1", "::", "::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "::127.0.0.1", "64:ff9b::a00:1",
     "2002:a00:1::1", "fe80::1", "fd00:ec2::254", "ff02::1", "224.0.0.1", "255.255.255.255",
     "100.100.100.200", "192.0.0.192", "198.18.0.1"],
)  # fmt: skip
def test_internal_addresses_in_every_spelling(text: str) -> None:
    address = parse_host(text)
    assert not isinstance(address, str)
    assert why_refused(address)


@pytest.mark.parametrize("text", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses(text: str) -> None:
    address = parse_host(text)
    assert not isinstance(address, str)
    assert why_refused(address) is None
