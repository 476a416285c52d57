"""What sandboxes can reach: real sandboxes, and real servers on loopback addresses that play the internet.

The operator's table of names puts ``*.test`` on loopback addresses, and the operator's exceptions let
policies allow those. Everything else of loopback stays refused, as it is for everybody.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from e2b import SandboxException
from e2b_code_interpreter import Sandbox

from tests.server.logs import logged

if TYPE_CHECKING:
    from conftest import RunningServer

PUBLIC, OTHER, INTERNAL = "127.0.0.9", "127.0.0.10", "127.0.0.11"
HOSTS = {
    "public.test": PUBLIC,
    "www.public.test": PUBLIC,
    "other.test": OTHER,
    "rebound.test": INTERNAL,
    "pypi.test": PUBLIC,
}
DENY_ALL = ["0.0.0.0/0"]
REFUSED = ("HTTPError", "ConnectionResetError", "ConnectionRefusedError", "gaierror", "RemoteDisconnected")


class Internet:
    """Servers on the addresses that play public hosts: `http` answers who was asked, `echo` repeats."""

    def __init__(self, directory: Path) -> None:
        self.stack = contextlib.ExitStack()
        self.certificate = directory / "cert.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
             "-days", "2", "-subj", "/CN=public.test", "-addext",
             "subjectAltName=DNS:public.test,DNS:evil.test", "-keyout", str(directory / "key.pem"),
             "-out", str(self.certificate)],
            check=True, capture_output=True,
        )  # fmt: skip
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, directory / "key.pem")
        for address in (PUBLIC, OTHER, INTERNAL):
            self._serve(address, 80)
            self._serve(address, 443, context)
            self._serve(address, 8080)

    def _serve(self, address: str, port: int, context: ssl.SSLContext | None = None) -> None:
        page = _Page if context is None else type("_SecurePage", (_Page,), {"context": context})
        server = _Server((address, port), page)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        self.stack.callback(server.server_close)
        self.stack.callback(server.shutdown)


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        pass  # connections that are refused in the middle


class _Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    context: ssl.SSLContext | None = None

    def setup(self) -> None:
        if self.context is not None:
            if not self.request.recv(1, socket.MSG_PEEK):
                raise ConnectionAbortedError
            self.request = self.context.wrap_socket(self.request, server_side=True)
        super().setup()

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            self.request.close()

    def do_GET(self) -> None:
        body = f"{self.server.server_address[0]} {self.headers.get('Host')}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def internet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    made = Internet(tmp_path_factory.mktemp("tls"))
    with made.stack:
        yield made


@pytest.fixture(scope="module")
def networked(
    tmp_path_factory: pytest.TempPathFactory, internet: Internet, starting: Callable[..., RunningServer]
) -> Iterator[RunningServer]:
    running = starting(
        tmp_path_factory.mktemp("net"),
        templates="base",
        RINGFENCE_NETWORK_HOSTS=",".join(f"{name}={address}" for name, address in HOSTS.items()),
        RINGFENCE_NETWORK_ALLOW_PRIVATE=f"{PUBLIC},{OTHER}",
    )
    yield running
    assert running.stop() == 0


Make = Callable[..., Sandbox]


@pytest.fixture
def make(networked: RunningServer) -> Iterator[Make]:
    made: list[Sandbox] = []

    def create(allow: list[str] | None = None, deny: list[str] | None = None, **options: Any) -> Sandbox:
        network = {"allow_out": allow or [], "deny_out": deny or []}
        sandbox = Sandbox.create("base", network=network, timeout=120, **options, **networked.options)
        made.append(sandbox)
        return sandbox

    yield create
    for sandbox in made:
        sandbox.kill()


def run(sandbox: Sandbox, code: str) -> str:
    """The output of Python code inside, or the name of the exception it ended with."""
    wrapped = "import socket, ssl, urllib.request as u, http.client as h, urllib.error\ntry:\n"
    wrapped += "".join(f"    {line}\n" for line in code.splitlines())
    wrapped += (
        "except OSError as e:\n    r = getattr(e, 'reason', None)\n"
        "    e = r if isinstance(r, OSError) else e\n    print(type(e).__name__, e.errno)"
    )
    result = sandbox.run_code(wrapped)
    assert result.error is None, result.error
    return "".join(result.logs.stdout).strip()


def get(sandbox: Sandbox, url: str, **headers: str) -> str:
    return run(
        sandbox, f"print(u.urlopen(u.Request({url!r}, headers={headers!r}), timeout=20).read().decode())"
    )


def get_by_address(sandbox: Sandbox, url: str, **headers: str) -> str:
    """As `get`, for addresses of 127.0.0.0/8: to plain sockets in the sandbox those are its own."""
    code = "o = u.build_opener(u.ProxyHandler({'http': 'http://127.0.0.1:3128'}))\n"
    code += f"print(o.open(u.Request({url!r}, headers={headers!r}), timeout=20).read().decode())"
    return run(sandbox, code)


# What is allowed works


def test_a_name_is_reached_by_a_plain_socket_on_any_port(make: Make) -> None:
    sandbox = make()
    assert get(sandbox, "http://public.test/") == f"{PUBLIC} public.test"
    assert get(sandbox, "http://other.test:8080/") == f"{OTHER} other.test:8080"


def test_an_address_is_reached_directly(make: Make) -> None:
    assert get_by_address(make(), f"http://{PUBLIC}:8080/") == f"{PUBLIC} {PUBLIC}:8080"


def test_name_rules(make: Make, networked: RunningServer) -> None:
    sandbox = make(["public.test"], DENY_ALL)
    assert get(sandbox, "http://public.test/") == f"{PUBLIC} public.test"
    assert get(sandbox, "http://other.test/").startswith("gaierror")
    assert get(sandbox, "http://www.public.test/").startswith("gaierror")
    line = logged(networked, sandbox, "other.test was refused")
    assert line == (
        "other.test was refused by the sandbox's network policy: allow it with other.test in allowOut"
    )


def test_wildcards(make: Make) -> None:
    sandbox = make(["*.public.test"], DENY_ALL)
    assert get(sandbox, "http://www.public.test/") == f"{PUBLIC} www.public.test"
    assert get(sandbox, "http://public.test/").startswith("gaierror")


def test_a_name_is_allowed_on_web_ports_and_with_a_port_on_that(make: Make, networked: RunningServer) -> None:
    sandbox = make(["public.test", "other.test:8080"], DENY_ALL)
    assert get(sandbox, "http://public.test:8080/").startswith(REFUSED)
    assert "allow public.test:8080" in logged(networked, sandbox, "public.test:8080 was refused")
    assert get(sandbox, "http://other.test:8080/") == f"{OTHER} other.test:8080"
    assert get(sandbox, "http://other.test/").startswith(REFUSED)


def test_blocks_and_that_allow_beats_deny(make: Make) -> None:
    sandbox = make([f"{PUBLIC}/32"], ["127.0.0.8/29"])
    assert get_by_address(sandbox, f"http://{PUBLIC}/") == f"{PUBLIC} {PUBLIC}"
    assert get(sandbox, "http://public.test/") == f"{PUBLIC} public.test"
    assert get_by_address(sandbox, f"http://{OTHER}/").startswith(REFUSED)
    assert get(sandbox, "http://other.test/").startswith(REFUSED)


def test_no_internet_access(make: Make) -> None:
    sandbox = make(allow_internet_access=False)
    assert get(sandbox, "http://public.test/").startswith("gaierror")
    assert get_by_address(sandbox, f"http://{PUBLIC}/").startswith(REFUSED)
    assert sandbox.get_info().allow_internet_access is False


def test_rules_change_while_it_runs(make: Make, networked: RunningServer) -> None:
    sandbox = make()
    opened = "c = socket.create_connection(('public.test', 8080), 20); print('open')"
    assert run(sandbox, opened) == "open"
    sandbox.update_network({"allow_out": ["other.test"], "deny_out": DENY_ALL})
    # A connection that stands is judged again, and so is a name that was looked up before.
    assert run(sandbox, "c.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n'); print(c.recv(9))").startswith(
        ("ConnectionResetError", "BrokenPipeError")
    )
    assert run(
        sandbox, "c = socket.create_connection(('198.18.0.1', 80), 20); c.send(b'x'); print(c.recv(9))"
    ).startswith(REFUSED)
    assert get(sandbox, "http://other.test/") == f"{OTHER} other.test"
    sandbox.update_network({})
    assert get(sandbox, "http://public.test/") == f"{PUBLIC} public.test"


def test_rules_are_shown(make: Make) -> None:
    info = make(["public.test"], DENY_ALL).get_info()
    assert info.network is not None
    assert info.network["allow_out"] == ["public.test"]


def test_rules_without_sense(networked: RunningServer) -> None:
    for network, what in (
        ({"allow_out": ["public.test"]}, "0.0.0.0/0"),
        ({"deny_out": ["public.test"]}, "denyOut"),
        ({"allow_out": ["public test"], "deny_out": DENY_ALL}, "public test"),
        ({"allow_out": ["public.test:99999"], "deny_out": DENY_ALL}, "port"),
        ({"allow_out": [f"{'a' * 60}.{'b' * 60}.x{n}" for n in range(500)], "deny_out": DENY_ALL}, "larger"),
    ):
        with pytest.raises(SandboxException, match=what):
            Sandbox.create("base", network=network, **networked.options)  # type: ignore[arg-type]


# What is refused whatever the rules say


@pytest.mark.parametrize(
    "address",
    ["127.0.0.11", "169.254.169.254", "10.0.0.1", "192.168.1.1", "172.16.0.1", "100.64.0.1", "198.18.99.1"],
)
def test_internal_addresses(make: Make, networked: RunningServer, address: str) -> None:
    sandbox = make(["0.0.0.0/0"])
    # 127.0.0.0/8 is the sandbox's own loopback, so the host's is only reached for by way of a proxy.
    host, port = ("127.0.0.1", 3128) if address.startswith("127.") else (address, 80)
    request = f"CONNECT {address}:80 HTTP/1.1\\r\\n\\r\\n"
    answer = run(
        sandbox,
        f"c = socket.create_connection(({host!r}, {port}), 20)\nc.sendall(b'{request}')\nprint(c.recv(99))",
    )
    assert answer.startswith((*REFUSED, "b'HTTP/1.1 403"))
    if not address.startswith("198.18"):
        assert "RINGFENCE_NETWORK_ALLOW_PRIVATE" in logged(networked, sandbox, f"{address}:80 was refused")


@pytest.mark.parametrize(
    "address",
    ["::ffff:127.0.0.11", "::1", "64:ff9b::7f00:b", "2002:7f00:b::", "fe80::1", "fd00:ec2::254", "::7f00:b"],
)
def test_internal_addresses_in_disguise(make: Make, address: str) -> None:
    packed = socket.inet_pton(socket.AF_INET6, address)
    answer = run(
        make(["0.0.0.0/0"]),
        "c = socket.create_connection(('127.0.0.1', 3128), 20)\nc.sendall(b'\\5\\1\\0')\nc.recv(2)\n"
        f"c.sendall(b'\\5\\1\\0\\4' + {packed!r} + b'\\0\\x50')\nprint(c.recv(99)[:2])",
    )
    assert answer == "b'\\x05\\x02'"


def test_a_name_that_leads_to_an_internal_address(make: Make, networked: RunningServer) -> None:
    sandbox = make(["rebound.test"], DENY_ALL)
    assert get(sandbox, "http://rebound.test/").startswith("gaierror")
    assert "the host's loopback" in logged(networked, sandbox, "rebound.test was refused")


def test_the_servers_own_port(make: Make, networked: RunningServer, internet: Internet) -> None:
    sandbox = make()
    answer = run(
        sandbox,
        f"c = socket.create_connection(('127.0.0.1', 3128), 20)\n"
        f"c.sendall(b'CONNECT {PUBLIC}:{networked.port} HTTP/1.1\\r\\n\\r\\n')\nprint(c.recv(12))",
    )
    assert answer == "b'HTTP/1.1 403'"
    assert "a port of this server" in logged(networked, sandbox, f"{networked.port} was refused")


# Ways around a name


def test_a_name_rule_holds_against_its_address(make: Make) -> None:
    sandbox = make(["public.test"], DENY_ALL)
    assert get_by_address(sandbox, f"http://{PUBLIC}/", Host="public.test").startswith(REFUSED)


def test_a_forged_host(make: Make, networked: RunningServer) -> None:
    sandbox = make(["public.test"], DENY_ALL)
    assert get(sandbox, "http://public.test/", Host="other.test").startswith(REFUSED)
    assert "'other.test'" in logged(networked, sandbox, "(Host)")


def test_a_forged_host_in_a_later_request(make: Make) -> None:
    sandbox = make(["public.test"], DENY_ALL)
    answer = run(
        sandbox,
        "c = h.HTTPConnection('public.test', timeout=20)\nc.request('GET', '/')\n"
        "print(c.getresponse().read())\n"
        "c.request('GET', '/', headers={'Host': 'other.test'})\nprint(c.getresponse().read())",
    ).splitlines()
    assert answer[0] == f"b'{PUBLIC} public.test'"
    assert answer[1].startswith(REFUSED)


def tls(sandbox: Sandbox, server_name: str | None) -> str:
    return run(
        sandbox,
        "x = ssl.create_default_context(); x.check_hostname = False; x.verify_mode = ssl.CERT_NONE\n"
        "c = socket.create_connection(('public.test', 443), 20)\n"
        f"t = x.wrap_socket(c, server_hostname={server_name!r})\n"
        "t.sendall(b'GET / HTTP/1.0\\r\\nHost: public.test\\r\\n\\r\\n')\n"
        "print(t.read(12))",
    )


def test_the_name_in_a_tls_handshake(make: Make, networked: RunningServer) -> None:
    sandbox = make(["public.test"], DENY_ALL)
    assert tls(sandbox, "public.test") == "b'HTTP/1.1 200'"
    assert tls(sandbox, "evil.test").startswith(REFUSED)
    assert tls(sandbox, None).startswith(REFUSED)
    assert "'evil.test'" in logged(networked, sandbox, "(SNI)")


# Names


def ask(sandbox: Sandbox, name: str, kind: int, server: str, tcp: bool) -> str:
    """A hand-made question; the code and the number of answers."""
    question = "b''.join(bytes([len(p)]) + p.encode() for p in name.split('.')) + b'\\0'"
    head, tail = b"\x12\x34\1\0\0\1\0\0\0\0\0\0", bytes([0, kind, 0, 1])
    code = f"name = {name!r}\nq = {head!r} + {question} + {tail!r}\n"
    if tcp:
        code += (
            f"c = socket.create_connection(({server!r}, 53), 20)\n"
            "c.sendall(len(q).to_bytes(2, 'big') + q)\na = c.recv(999)[2:]\n"
        )
    else:
        code += (
            "c = socket.socket(type=socket.SOCK_DGRAM); c.settimeout(20)\n"
            f"c.sendto(q, ({server!r}, 53))\na, who = c.recvfrom(999)\nassert who == ({server!r}, 53)\n"
        )
    return run(sandbox, code + "print(a[3] & 15, a[7])")


@pytest.mark.parametrize("tcp", [False, True])
def test_names_are_answered(make: Make, tcp: bool) -> None:
    sandbox = make(["public.test", "missing.public.test"], DENY_ALL)
    assert ask(sandbox, "public.test", 1, "127.0.0.1", tcp) == "0 1"
    assert ask(sandbox, "PUBLIC.test", 1, "127.0.0.1", tcp) == "0 1"
    assert ask(sandbox, "public.test", 28, "127.0.0.1", tcp) == "0 0"
    assert ask(sandbox, "public.test", 16, "127.0.0.1", tcp) == "0 0"
    assert ask(sandbox, "secret-data.evil.test", 1, "127.0.0.1", tcp) == "3 0"


def test_another_name_server_is_answered_by_ours(make: Make) -> None:
    sandbox = make(["public.test"], DENY_ALL)
    assert ask(sandbox, "public.test", 1, "8.8.8.8", tcp=False) == "0 1"
    assert ask(sandbox, "tunnel.evil.test", 1, "8.8.8.8", tcp=False) == "3 0"
    assert ask(sandbox, "public.test", 1, "8.8.8.8", tcp=True).startswith(REFUSED)


# What is not TCP


def test_udp_is_refused_at_once(make: Make) -> None:
    code = "s = socket.socket(type=socket.SOCK_DGRAM); s.sendto(b'x', ('203.0.113.5', 123)); print('sent')"
    assert run(make(), code) == "PermissionError 1"


def test_icmp_is_refused(make: Make) -> None:
    code = (
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)\n"
        "s.sendto(b'\\10\\0\\0\\0\\0\\0\\0\\0', ('203.0.113.5', 0)); print('sent')"
    )
    assert run(make(), code).startswith("PermissionError")


def test_there_is_no_ipv6_but_mapped_addresses_are_judged(make: Make) -> None:
    sandbox = make(["public.test"], DENY_ALL)
    assert run(sandbox, "socket.create_connection(('2001:db8::1', 80), 20)") == "OSError 101"
    mapped = "c = socket.create_connection(('::ffff:203.0.113.5', 80), 20); c.send(b'x'); print(c.recv(9))"
    assert run(sandbox, mapped).startswith(REFUSED)


def test_the_hosts_unix_sockets_are_not_there(make: Make, tmp_path: Path) -> None:
    sandbox = make()
    with socket.socket(socket.AF_UNIX) as path, socket.socket(socket.AF_UNIX) as abstract:
        path.bind(str(tmp_path / "s"))
        path.listen()
        abstract.bind("\0ringfence-test")
        abstract.listen()
        for target, error in ((str(tmp_path / "s"), "FileNotFoundError"), ("\0ringfence-test", "Connection")):
            assert run(sandbox, f"socket.socket(socket.AF_UNIX).connect({target!r})").startswith(error)


# Proxies


def test_programs_may_use_a_proxy(make: Make) -> None:
    sandbox = make(["public.test"], DENY_ALL)
    for proxy in ("http://127.0.0.1:3128", "socks5h://127.0.0.1:3128"):
        for url, expected in (
            ("http://public.test/", f"{PUBLIC} public.test"),
            ("http://other.test/", None),
            (f"http://{PUBLIC}/", None),
        ):
            command = f"curl -sSf -m 20 -x {proxy} {url} || echo refused"
            output = sandbox.commands.run(command, timeout=30).stdout.strip()
            assert output == (expected or "refused"), (proxy, url)
    tunnel = "curl -sSfk -m 20 -p -x http://127.0.0.1:3128 https://public.test/"
    assert sandbox.commands.run(tunnel, timeout=30).stdout == f"{PUBLIC} public.test"


# The operator


def test_the_default_and_the_ceiling(
    tmp_path: Path, internet: Internet, launch: Callable[..., RunningServer]
) -> None:
    server = launch(
        tmp_path,
        templates="base",
        RINGFENCE_NETWORK_HOSTS=",".join(f"{name}={address}" for name, address in HOSTS.items()),
        RINGFENCE_NETWORK_ALLOW_PRIVATE=f"{PUBLIC},{OTHER}",
        RINGFENCE_NETWORK_DEFAULT="none",
        RINGFENCE_NETWORK_CEILING="packages,public.test",
    )
    with Sandbox.create("base", **server.options) as sandbox:
        assert get(sandbox, "http://public.test/").startswith("gaierror")
    with Sandbox.create("base", allow_internet_access=True, **server.options) as sandbox:
        assert get(sandbox, "http://public.test/") == f"{PUBLIC} public.test"
        assert get(sandbox, "http://other.test/").startswith("gaierror")
        assert get_by_address(sandbox, f"http://{PUBLIC}/").startswith(REFUSED)
        assert "RINGFENCE_NETWORK_CEILING" in logged(server, sandbox, "other.test was refused")
    assert server.stop() == 0


def test_a_setting_without_sense(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "ringfence", "serve", "--port", "0", "--data-dir", str(tmp_path),
         "--templates", "base", "--network-ceiling", "no such thing"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert process.returncode == 1
    assert "wrong network setting" in process.stderr
    assert "Traceback" not in process.stderr


# Packages


def test_pip_installs_a_real_package(make: Make) -> None:
    sandbox = make(["@packages"], DENY_ALL)
    result = sandbox.commands.run(
        "pip install -q six && python -c 'import six; print(six.__name__)'", timeout=120
    )
    assert result.stdout.strip() == "six"
    assert get(sandbox, "http://public.test/").startswith("gaierror")


def test_the_cell_that_is_refused_something_is_told(make: Make) -> None:
    sandbox = make(["public.test"], DENY_ALL)
    result = sandbox.run_code("import socket\nsocket.getaddrinfo('other.test', 80)")
    assert result.error is not None
    assert "[network: other.test was refused by the sandbox's network policy" in "".join(result.logs.stderr)


def test_rules_outlast_a_pause(make: Make) -> None:
    sandbox = make(["public.test"], DENY_ALL)
    sandbox.update_network({"allow_out": ["other.test"], "deny_out": DENY_ALL})
    for mode in ("full", "filesystem"):
        sandbox.pause(mode=mode)
        sandbox.connect()
        assert get(sandbox, "http://other.test/") == f"{OTHER} other.test"
        assert get(sandbox, "http://public.test/").startswith("gaierror")


def test_a_fork_gets_the_rules_in_force(make: Make) -> None:
    sandbox = make()
    sandbox.update_network({"allow_out": ["other.test"], "deny_out": DENY_ALL})
    (forked,) = sandbox.fork(count=1, timeout=60)
    try:
        assert get(forked, "http://other.test/") == f"{OTHER} other.test"
        assert get(forked, "http://public.test/").startswith("gaierror")
    finally:
        forked.kill()


def test_learning_what_a_program_needs(networked: RunningServer) -> None:
    def script(network: str) -> subprocess.CompletedProcess[str]:
        code = (
            "import urllib.request as u\nfor p in ('', ':8080'): u.urlopen(f'http://public.test{p}/').read()"
        )
        return subprocess.run(
            [sys.executable, "-m", "ringfence", "run", "--template", "base", "--network", network,
             "-c", code],
            env={**os.environ, "RINGFENCE_URL": networked.url, "RINGFENCE_API_KEY": networked.key},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    learned = script("learn")
    assert learned.returncode == 0, learned.stderr
    assert "with --network public.test,public.test:8080" in learned.stderr
    assert script("public.test,public.test:8080").returncode == 0
    assert script("public.test").returncode == 1
    assert "--network none is enough" not in learned.stderr


def test_name_servers_that_may_be_reached(make: Make, networked: RunningServer) -> None:
    network = {"allow_out": ["other.test"], "deny_out": DENY_ALL, "dns_servers": [PUBLIC]}
    with Sandbox.create("base", network=network, timeout=60, **networked.options) as sandbox:
        assert get_by_address(sandbox, f"http://{PUBLIC}:8080/") == f"{PUBLIC} {PUBLIC}:8080"
        info = sandbox.get_info()
        assert info.network is not None
        assert info.network["dns_servers"] == [PUBLIC]
        sandbox.update_network({"allow_out": ["other.test"], "deny_out": DENY_ALL})
        assert get_by_address(sandbox, f"http://{PUBLIC}:8080/").startswith(REFUSED)
    with pytest.raises(SandboxException, match="dnsServers"):
        Sandbox.create("base", network={"dns_servers": ["no-address"]}, **networked.options)


# Accounts and explanations


def usage(networked: RunningServer, path: str, key: str = "") -> dict[str, int]:
    answer = httpx.get(f"{networked.url}{path}", headers={"X-API-KEY": key or networked.key})
    assert answer.status_code == 200, answer.text
    account: dict[str, int] = answer.json()
    return account


def test_what_was_used_is_counted(make: Make, networked: RunningServer) -> None:
    before = usage(networked, "/usage/network")
    sandbox = make(["public.test"], DENY_ALL)
    get(sandbox, "http://public.test/")
    get(sandbox, "http://other.test/")
    path = f"/sandboxes/{sandbox.sandbox_id}/network"
    used = usage(networked, path)
    assert (used["connections"], used["openConnections"]) == (1, 0)
    assert used["refused"] >= 1  # resolvers ask for both kinds of address
    assert used["bytesSent"] > 50
    assert used["bytesReceived"] > 50
    sandbox.pause(mode="filesystem")
    sandbox.connect()
    get(sandbox, "http://public.test/")
    assert usage(networked, path)["connections"] == 2
    foreign = httpx.get(networked.url + path, headers={"X-API-KEY": networked.stranger})
    assert foreign.status_code == 404
    sandbox.kill()
    deadline = time.monotonic() + 10
    while usage(networked, "/usage/network")["connections"] < before["connections"] + 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert usage(networked, "/usage/network")["refused"] == before["refused"] + used["refused"]
    assert usage(networked, "/usage/network", networked.stranger)["connections"] == 0
    text = httpx.get(f"{networked.url}/metrics", headers={"X-API-KEY": networked.key}).text
    assert f"\nringfence_network_connections_total {before['connections'] + 2}\n" in text
    assert httpx.get(f"{networked.url}/metrics").status_code == 401


def test_the_command_line_shows_what_was_refused(make: Make, networked: RunningServer) -> None:
    sandbox = make(["public.test"], DENY_ALL)
    get(sandbox, "http://other.test/")
    tls(sandbox, "evil.test")
    logged(networked, sandbox, "(SNI)")

    def logs(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "ringfence", "logs", sandbox.sandbox_id, *arguments],
            env={**os.environ, "RINGFENCE_URL": networked.url, "RINGFENCE_API_KEY": networked.key},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    following = logs("--follow")
    shown, _ = logs("--level", "warning").communicate(timeout=120)
    assert len(shown.splitlines()) == 2
    assert "other.test was refused by the sandbox's network policy: allow it with other.test" in shown
    assert "allow what is meant in allowOut" in shown
    assert following.stdout is not None
    assert "sandbox started" in following.stdout.readline()
    sandbox.kill()
    assert "(SNI)" in following.stdout.read()
    following.stdout.close()
    assert following.stderr is not None
    following.stderr.close()
    assert following.wait(60) == 0
    unknown = logs()
    assert "does not exist" in unknown.communicate(timeout=120)[1]
    assert unknown.returncode == 1
