"""Secrets, and headers that are changed on their way out, by the SDK and against real servers.

The servers are on loopback addresses that the operator's table of names calls ``*.test``; their certificates
are of an authority that the operator names.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import sqlite3
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from e2b import InvalidArgumentException, Secret, SecretException, SecretNotFoundException
from e2b_code_interpreter import Sandbox

from ringfence.engine.certificates import issue, make_authority
from tests.server.logs import logged

if TYPE_CHECKING:
    from conftest import RunningServer

API, OTHER, FORGED = "127.0.0.13", "127.0.0.14", "127.0.0.15"
HOSTS = {"api.test": API, "www.api.test": API, "other.test": OTHER, "forged.test": FORGED}
VALUE = "sk-very-secret-0123456789"


class _Echo(http.server.BaseHTTPRequestHandler):
    """Answers with what arrived: method, path, headers, and length and digest of the body."""

    protocol_version = "HTTP/1.1"
    context: ssl.SSLContext | None = None

    def setup(self) -> None:
        if self.context is not None:
            self.request = self.context.wrap_socket(self.request, server_side=True)
        super().setup()

    def do_GET(self) -> None:
        if self.headers.get("Upgrade") == "websocket":
            self._switch()
            return
        if self.path.startswith("/large/"):
            self._large(int(self.path.rpartition("/")[2]))
            return
        self._describe(b"")

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            self._describe(b"".join(self._chunks()))
        else:
            self._describe(self.rfile.read(int(self.headers.get("Content-Length", "0"))))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _describe(self, body: bytes) -> None:
        account = {
            "address": self.server.server_address[0],
            "method": self.command,
            "path": self.path,
            "headers": [[name.lower(), value] for name, value in self.headers.items()],
            "length": len(body),
            "digest": hashlib.sha256(body).hexdigest(),
        }
        answer = json.dumps(account).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _large(self, size: int) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        block = b"x" * 65536
        for _ in range(size // len(block)):
            self.wfile.write(b"10000\r\n" + block + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def _switch(self) -> None:
        self.wfile.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
            + self.headers.get("Authorization", "").encode()
        )
        while data := self.connection.recv(4096):
            self.connection.sendall(data[::-1])
        self.close_connection = True

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()
        self.request.close()

    def log_message(self, *_: Any) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        pass  # connections that are refused in the middle


def _context(directory: Path, name: str, authority: str) -> ssl.SSLContext:
    ca, ca_key = directory / f"{authority}.pem", directory / f"{authority}.key"
    if not ca.exists():
        make_authority(ca, ca_key, authority)
    certificate, key = issue(ca.read_bytes(), ca_key.read_bytes(), [name, f"www.{name}"])
    path = directory / f"{name}.pem"
    path.write_bytes(certificate + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Starts the servers; the file of the authority that vouches for all but one of them."""
    directory = tmp_path_factory.mktemp("authorities")
    with contextlib.ExitStack() as stack:
        for address, name, authority in (
            (API, "api.test", "trusted"), (OTHER, "other.test", "trusted"),
            (FORGED, "forged.test", "unknown"),
        ):  # fmt: skip
            context = _context(directory, name, authority)
            for port in (80, 443, 8080, 8443):
                tls = {"context": context} if port in (443, 8443) else {}
                server = _Server((address, port), type("_Handler", (_Echo,), tls))
                threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
                stack.callback(server.server_close)
                stack.callback(server.shutdown)
        yield directory / "trusted.pem"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("secrets")


@pytest.fixture(scope="module")
def networked(data_dir: Path, roots: Path, starting: Callable[..., RunningServer]) -> Iterator[RunningServer]:
    running = starting(
        data_dir,
        templates="base",
        RINGFENCE_NETWORK_HOSTS=",".join(f"{name}={address}" for name, address in HOSTS.items()),
        RINGFENCE_NETWORK_ALLOW_PRIVATE=f"{API},{OTHER},{FORGED}",
        RINGFENCE_NETWORK_ROOTS=str(roots),
    )
    yield running
    assert running.stop() == 0


@pytest.fixture
def options(networked: RunningServer) -> dict[str, str]:
    """For the SDK's `Secret`."""
    return {"api_key": networked.key, "api_url": networked.url}


@pytest.fixture
def secret(options: dict[str, str]) -> Iterator[str]:
    """The name of a secret whose value is `VALUE`."""
    Secret.create("api-key", VALUE, **options)
    yield "api-key"
    Secret.destroy("api-key", **options)


Make = Callable[..., Sandbox]


@pytest.fixture
def make(networked: RunningServer) -> Iterator[Make]:
    made: list[Sandbox] = []

    def create(rules: dict[str, dict[str, str]], **network: Any) -> Sandbox:
        network["rules"] = {host: [{"transform": {"headers": headers}}] for host, headers in rules.items()}
        made.append(Sandbox.create("base", network=network, timeout=120, **networked.options))
        return made[-1]

    yield create
    for sandbox in made:
        sandbox.kill()


def python(sandbox: Sandbox, code: str) -> str:
    """What code prints, or what it fails with."""
    head = "import socket, ssl, json, hashlib, http.client as h, urllib.request as u\n"
    body = "".join(f"    {line}\n" for line in code.splitlines())
    tail = "except Exception as e:\n    print(type(e).__name__, e)"
    result = sandbox.run_code(f"{head}try:\n{body}{tail}")
    assert result.error is None, result.error
    return "".join(result.logs.stdout).strip()


def fetch(sandbox: Sandbox, url: str, **headers: str) -> dict[str, Any]:
    """What the server at a URL got."""
    request = f"u.Request({url!r}, headers={headers!r})"
    text = python(
        sandbox,
        f"try: print(u.urlopen({request}, timeout=20).read().decode())\n"
        "except u.HTTPError as e: print(json.dumps({'status': e.code, 'text': e.read().decode()}))",
    )
    try:
        account: dict[str, Any] = json.loads(text)
    except ValueError:
        return {"error": text}
    if "headers" in account:
        account["fields"] = dict(account["headers"])
    return account


BEARER = {"Authorization": "Bearer " + Secret.fill("api-key")}


# The API


def test_the_life_of_a_secret(options: dict[str, str], networked: RunningServer) -> None:
    made = Secret.create("Life", "first", metadata={"team": "a"}, **options)
    assert (made.name, made.version, made.metadata) == ("life", 1, {"team": "a"})
    assert made.secret_id.startswith("sec_")
    assert Secret.get_info("life", **options) == made == Secret.get_info(made.secret_id, **options)
    changed = Secret.update("life", "second", **options)
    assert (changed.version, changed.metadata, changed.created_at) == (2, {"team": "a"}, made.created_at)
    assert Secret.update("life", "third", metadata={}, **options).metadata == {}
    with pytest.raises(SecretException, match="already"):
        Secret.create("LIFE", "again", **options)
    assert not Secret.exists("life", **{**options, "api_key": networked.stranger})
    assert Secret.destroy("life", **options)
    assert not Secret.destroy("life", **options)
    with pytest.raises(SecretNotFoundException):
        Secret.update("life", "fourth", **options)


def test_secrets_are_listed_by_pages(options: dict[str, str]) -> None:
    for number in range(5):
        Secret.create(f"page-{number}", "x", **options)
    paginator = Secret.list(limit=2, **options)
    pages = []
    while paginator.has_next:
        pages.append([one.name for one in paginator.next_items()])
    assert pages == [["page-0", "page-1"], ["page-2", "page-3"], ["page-4"]]
    for number in range(5):
        Secret.destroy(f"page-{number}", **options)


@pytest.mark.parametrize("limit", ["0", "101", "x", "0000010", "000001" + "9" * 5000])
def test_pages_have_a_size(networked: RunningServer, limit: str) -> None:
    headers = {"X-API-KEY": networked.key}
    for path in ("/secrets", "/snapshots", "/v2/sandboxes"):
        answer = httpx.get(f"{networked.url}{path}", params={"limit": limit}, headers=headers)
        assert answer.status_code == 400
        assert answer.json()["message"].startswith("limit")


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ({"name": "", "value": "x"}, "name"),
        ({"name": "a{b", "value": "x"}, "name"),
        ({"name": "sec_abc", "value": "x"}, "reserved"),
        ({"name": "a", "value": "two\nlines"}, "value"),
        ({"name": "a", "value": "x" * 20_000}, "value"),
        ({"name": "a", "value": "x", "metadata": {str(n): "v" for n in range(33)}}, "metadata"),
        ({"name": "a"}, "value"),
    ],
)
def test_secrets_without_sense(networked: RunningServer, body: dict[str, Any], what: str) -> None:
    answer = httpx.post(f"{networked.url}/secrets", json=body, headers={"X-API-KEY": networked.key})
    assert answer.status_code == 400
    assert what in answer.json()["message"]


def test_values_are_kept_encrypted(options: dict[str, str], data_dir: Path, secret: str) -> None:
    key_file = data_dir / "secrets.key"
    assert key_file.stat().st_mode & 0o777 == 0o600
    with contextlib.closing(sqlite3.connect(data_dir / "ringfence.db")) as database:
        rows = database.execute("SELECT * FROM secrets").fetchall()
    assert rows
    for path in data_dir.glob("ringfence.db*"):
        assert VALUE.encode() not in path.read_bytes()


# Filling in


@pytest.mark.parametrize(
    "url", ["https://api.test/v1?q=1", "http://api.test/v1?q=1", "https://api.test:8443/"]
)
def test_a_secret_is_filled_in_on_the_way_out(make: Make, secret: str, url: str) -> None:
    sandbox = make({"api.test": {**BEARER, "X-Team": "blue"}})
    got = fetch(sandbox, url, Authorization="Bearer placeholder", Accept="text/plain")
    assert got["fields"]["authorization"] == f"Bearer {VALUE}"
    assert [name for name, _ in got["headers"]].count("authorization") == 1
    assert (got["fields"]["x-team"], got["fields"]["accept"]) == ("blue", "text/plain")
    assert got["path"] == url.partition("test")[2].removeprefix(":8443")


def test_only_for_the_host_that_was_named(make: Make, secret: str) -> None:
    sandbox = make({"api.test": BEARER})
    got = fetch(sandbox, "http://other.test/")
    assert "authorization" not in got["fields"]
    # Its TLS is not opened: the certificate is the server's own, which nobody inside trusts.
    assert "CERTIFICATE_VERIFY_FAILED" in fetch(sandbox, "https://other.test/")["error"]
    assert "CERTIFICATE_VERIFY_FAILED" in fetch(sandbox, "https://www.api.test/")["error"]


def test_the_sandbox_never_has_the_value(make: Make, secret: str, networked: RunningServer) -> None:
    sandbox = make({"api.test": BEARER})
    assert fetch(sandbox, "https://api.test/")["fields"]["authorization"] == f"Bearer {VALUE}"
    sandbox.commands.run("env > /tmp/env; set > /tmp/set", user="root")
    found = sandbox.commands.run(
        f"grep -rl {VALUE[:9]}''{VALUE[9:]} /tmp/env /tmp/set /etc /run /home 2>/dev/null; true", user="root"
    )
    assert found.stdout == ""
    info = sandbox.get_info()
    assert info.network is not None
    assert info.network["rules"]["api.test"][0]["transform"]["headers"] == BEARER
    assert VALUE not in repr(info)


def test_a_rule_does_not_allow_its_host(make: Make, secret: str) -> None:
    sandbox = make({"api.test": BEARER}, allow_out=["other.test"], deny_out=["0.0.0.0/0"])
    assert "gaierror" in fetch(sandbox, "https://api.test/")["error"] or "Name" in str(
        fetch(sandbox, "https://api.test/")
    )
    allowed = make({"api.test": BEARER}, allow_out=["api.test"], deny_out=["0.0.0.0/0"])
    assert fetch(allowed, "https://api.test/")["fields"]["authorization"] == f"Bearer {VALUE}"


def test_a_changed_secret_is_in_force_at_once(make: Make, secret: str, options: dict[str, str]) -> None:
    sandbox = make({"api.test": BEARER})
    python(
        sandbox,
        "c = h.HTTPSConnection('api.test', timeout=20); c.request('GET', '/'); c.getresponse().read()",
    )
    Secret.update(secret, "sk-new", **options)
    later = "c.request('GET', '/'); print(json.dumps(dict(json.load(c.getresponse())['headers'])))"
    assert json.loads(python(sandbox, later))["authorization"] == "Bearer sk-new"
    Secret.destroy(secret, **options)
    got = fetch(sandbox, "https://api.test/")
    assert got["status"] == 502
    assert "the secret 'api-key'" in got["text"]
    Secret.create(secret, VALUE, **options)
    assert fetch(sandbox, "https://api.test/")["fields"]["authorization"] == f"Bearer {VALUE}"


def test_rules_change_while_it_runs(make: Make, secret: str) -> None:
    sandbox = make({})
    assert "CERTIFICATE_VERIFY_FAILED" in fetch(sandbox, "https://api.test/")["error"]
    sandbox.update_network({"rules": {"api.test": [{"transform": {"headers": BEARER}}]}})
    curl = sandbox.commands.run("curl -sS https://api.test/")
    assert VALUE in curl.stdout
    python(
        sandbox, "c = h.HTTPConnection('api.test', timeout=20); c.request('GET', '/'); c.getresponse().read()"
    )
    sandbox.update_network({})
    assert "authorization" not in fetch(sandbox, "http://api.test/")["fields"]
    again = python(sandbox, "c.auto_open = 0; c.request('GET', '/'); print(c.getresponse().read())")
    assert VALUE not in again


def test_forks_and_pauses_keep_the_rules(make: Make, secret: str) -> None:
    sandbox = make({"api.test": BEARER})
    for mode in ("full", "filesystem"):
        sandbox.pause(mode=mode)
        sandbox.connect()
        assert fetch(sandbox, "https://api.test/")["fields"]["authorization"] == f"Bearer {VALUE}"
    (forked,) = sandbox.fork(count=1, timeout=60)
    try:
        assert fetch(forked, "https://api.test/")["fields"]["authorization"] == f"Bearer {VALUE}"
    finally:
        forked.kill()


# What is refused


def raw(sandbox: Sandbox, request: bytes, host: str = "api.test") -> str:
    """What a server answers to bytes over TLS, up to the end of the connection."""
    return python(
        sandbox,
        f"s = ssl.create_default_context().wrap_socket(socket.create_connection(({host!r}, 443), 20), "
        f"server_hostname={host!r})\n"
        f"s.sendall({request!r})\ns.settimeout(3)\nd = b''\n"
        "try:\n    while b := s.recv(65536): d += b\nexcept OSError: pass\nprint(d.decode())",
    )


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n", "421"),
        (b"GET https://other.test/ HTTP/1.1\r\nHost: api.test\r\n\r\n", "421"),
        (b"GET / HTTP/1.1\r\nHost: api.test\r\nHost: other.test\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\n\r\n", "400"),
        (b"GET / HTTP/1.0\r\n\r\n", "400"),
        (b"CONNECT other.test:443 HTTP/1.1\r\nHost: other.test:443\r\n\r\n", "405"),
        (b"TRACE / HTTP/1.1\r\nHost: api.test\r\n\r\n", "405"),
        (b"GET https://[::/ HTTP/1.1\r\nHost: api.test\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\nHost: api.test\r\nX: a\r\n\tb\x00\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\nHost : api.test\r\n\r\n", "400"),
        (b"POST / HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: xchunked\r\n\r\n", "501"),
        (b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400"),
    ],
)
def test_requests_that_could_be_for_another_host(
    make: Make, secret: str, request_: bytes, status: str
) -> None:
    answer = raw(make({"api.test": BEARER}), request_)
    assert answer.startswith(f"HTTP/1.1 {status} ")
    assert VALUE not in answer


def test_a_second_request_cannot_be_smuggled(make: Make, secret: str) -> None:
    answer = raw(
        make({"api.test": BEARER}),
        b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\nGET /second HTTP/1.1\r\nHost: other.test\r\n\r\n",
    )
    first, _, rest = answer.partition('"digest"')
    assert '"length": 0' in first
    assert '"content-length"' not in first
    assert "HTTP/1.1 421" in rest
    assert "/second" not in rest


def test_another_name_in_the_handshake(make: Make, secret: str, networked: RunningServer) -> None:
    sandbox = make({"api.test": BEARER})
    code = (
        "x = ssl.create_default_context(); x.check_hostname = False; x.verify_mode = ssl.CERT_NONE\n"
        "x.wrap_socket(socket.create_connection(('api.test', 443), 20), server_hostname='other.test')"
    )
    assert python(sandbox, code).startswith("SSL")
    assert "could not be opened" in logged(networked, sandbox, "api.test:443 was refused")


def test_the_hosts_certificate_is_verified(make: Make, secret: str, networked: RunningServer) -> None:
    sandbox = make({"forged.test": BEARER})
    got = fetch(sandbox, "https://forged.test/")
    assert got["status"] == 502
    assert "certificate was not accepted" in got["text"]
    assert "certificate was not accepted" in logged(networked, sandbox, "forged.test:443 could not be")


def test_rules_without_sense(make: Make, networked: RunningServer) -> None:
    for rules, what in (
        ({"api.test": {"Host": "other.test"}}, "Host"),
        ({"api.test": {"Content-Length": "0"}}, "Content-Length"),
        ({"api.test": {"X": "a\r\nHost: b"}}, "characters"),
        ({"api.test": {"X Y": "a"}}, "no name of a header"),
        ({"no such host!": {"X": "a"}}, "no host name"),
        ({"api.test": {"X": "\xe9" * 8000}}, "larger than"),
        ({"api.test": {"X": "${e2b.identity.tokens.aws}"}}, "not implemented"),
    ):
        with pytest.raises(Exception, match=what):
            make(rules)
    body = {"templateID": "base", "network": {"rules": {"api.test": [{"block": True}]}}}
    answer = httpx.post(f"{networked.url}/v2/sandboxes", json=body, headers={"X-API-KEY": networked.key})
    assert (answer.status_code, "block" in answer.text) == (501, True)
    with pytest.raises(InvalidArgumentException):
        Secret.fill("a}b")


# Conversations


def test_many_requests_over_one_connection(make: Make, secret: str) -> None:
    sandbox = make({"api.test": BEARER})
    code = (
        "c = h.HTTPSConnection('api.test', timeout=20); c.connect(); c.auto_open = 0\n"
        "for n in range(5):\n"
        "    c.request('POST', f'/{n}', body=b'x' * n)\n"
        "    a = json.load(c.getresponse())\n"
        "    print(a['path'], a['length'], dict(a['headers'])['authorization'])"
    )
    expected = [f"/{n} {n} Bearer {VALUE}" for n in range(5)]
    assert python(sandbox, code).splitlines() == expected


def test_large_bodies_and_chunks(make: Make, secret: str) -> None:
    sandbox = make({"api.test": BEARER})
    code = (
        "c = h.HTTPSConnection('api.test', timeout=60)\n"
        "c.request('POST', '/', body=(b'y' * 50_000 for _ in range(400)), encode_chunked=True,\n"
        "          headers={'Transfer-Encoding': 'chunked'})\n"
        "a = json.load(c.getresponse())\n"
        "print(a['length'], a['digest'] == hashlib.sha256(b'y' * 20_000_000).hexdigest())\n"
        "c.request('GET', '/large/33554432'); print(len(c.getresponse().read()))"
    )
    assert python(sandbox, code).splitlines() == ["20000000 True", "33554432"]


def test_a_change_to_websockets_is_passed_through(make: Make, secret: str) -> None:
    code = (
        "s = ssl.create_default_context().wrap_socket(socket.create_connection(('api.test', 443), 20), "
        "server_hostname='api.test')\n"
        "s.sendall(b'GET /ws HTTP/1.1\\r\\nHost: api.test\\r\\nConnection: keep-alive, Upgrade\\r\\n'\n"
        "          b'Upgrade: websocket\\r\\n\\r\\n')\n"
        "d = b''\nwhile not d.endswith(b'0123456789'): d += s.recv(4096)\n"
        "s.sendall(b'abc'); print(d.split()[1], d[-25:], s.recv(99))"
    )
    assert python(make({"api.test": BEARER}), code) == f"b'101' b'{VALUE}' b'cba'"


def test_clients_that_hang_up_disturb_no_others(make: Make, secret: str) -> None:
    code = (
        "x = ssl.create_default_context(); got = []\n"
        "for n in range(40):\n"
        "    s = socket.create_connection(('api.test', 443), 20)\n"
        "    if n % 4 == 0: s.close(); continue\n"
        "    if n % 4 == 1: s.sendall(b'nonsense'); s.close(); continue\n"
        "    s = x.wrap_socket(s, server_hostname='api.test')\n"
        "    s.sendall(b'GET /large/655360 HTTP/1.1\\r\\nHost: api.test\\r\\n'\n"
        "              b'Connection: close\\r\\n\\r\\n')\n"
        "    if n % 4 == 2: s.recv(9); s.close(); continue\n"
        "    d = b''\n"
        "    while b := s.recv(65536): d += b\n"
        "    got.append(d.count(b'x') >= 655360)\n"
        "print(got == [True] * 10)"
    )
    assert python(make({"api.test": BEARER}), code) == "True"


def test_a_copy_without_rules_does_not_trust_it(make: Make, secret: str, networked: RunningServer) -> None:
    count = "cat /etc/ssl/certs/ca-certificates.crt $(python3 -c 'import certifi; print(certifi.where())')"
    count += " | grep -c 'Added by Ringfence' || true"
    sandbox = make({"api.test": BEARER})
    assert int(sandbox.commands.run(count).stdout) > 0
    snapshot = sandbox.create_snapshot()
    try:
        with Sandbox.create(snapshot.snapshot_id, **networked.options) as copy:
            assert copy.commands.run(count).stdout == "0\n"
    finally:
        Sandbox.delete_snapshot(snapshot.snapshot_id, **networked.options)


def test_programs_of_all_kinds_trust_it(make: Make, secret: str) -> None:
    sandbox = make({"api.test": BEARER})
    for command in (
        "curl -sS https://api.test/",
        "python3 -c 'import requests; print(requests.get(\"https://api.test/\").text)'",
        "env -u SSL_CERT_FILE -u REQUESTS_CA_BUNDLE -u CURL_CA_BUNDLE python3 -c "
        "'import requests; print(requests.get(\"https://api.test/\").text)'",
        "python3 -c 'import httpx; print(httpx.get(\"https://api.test/\").text)'",
    ):
        result = sandbox.commands.run(f"{command} 2>&1 || true", timeout=60)
        if "No module named" not in result.stdout:
            assert VALUE in result.stdout, (command, result.stdout)
