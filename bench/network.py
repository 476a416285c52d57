"""What the network policy costs: connections, downloads, headers changed on the way out, and packages.

A server on a loopback address plays a public host. The same program measures inside of a sandbox and outside,
so that every figure comes with its ratio. Prints a table and writes ``out/bench/network.json``.
"""

import asyncio
import json
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2b_code_interpreter import Sandbox
from report import asked, write
from serving import Server, serving

from ringfence.engine.certificates import issue, make_authority
from ringfence.engine.settings import default_cache_dir

ADDRESS, NAMES = "127.0.0.77", ("opened.test", "plain.test")
ECHO, HTTP, HTTPS = 17007, 17080, 17443
WHEEL = "pandas"

# Runs inside and outside; prints one line of JSON. ROOTS: what to trust, for TLS that is not opened.
CLIENT = """
import json, socket, ssl, sys, threading, time
TLS = ssl.create_default_context()
if ROOTS: TLS.load_verify_locations(cadata=ROOTS)
def connect(host, port, tls):
    s = socket.create_connection((host, port), 30)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not tls: return s
    return TLS.wrap_socket(s, server_hostname=host)
def echo(host, port):
    s = connect(host, port, False); s.sendall(b'x'); s.recv(1); s.close()
def get(host, port, tls, size):
    s = connect(host, port, tls)
    s.sendall(f'GET /{size} HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n'.encode())
    n = 0
    while d := s.recv(1 << 20): n += len(d)
    s.close(); assert n >= size, n
def median(work, rounds):
    t = []
    for _ in range(rounds):
        a = time.perf_counter(); work(); t.append(time.perf_counter() - a)
    return sorted(t)[len(t) // 2]
def rate(work, threads, each):
    ts = [threading.Thread(target=lambda: [work() for _ in range(each)]) for _ in range(threads)]
    a = time.perf_counter(); [t.start() for t in ts]; [t.join() for t in ts]
    return threads * each / (time.perf_counter() - a)
"""
MEASURE = """
r = {}
echo(PLAIN, ECHO)
r['connect and one byte, ms'] = 1000 * median(lambda: echo(PLAIN, ECHO), ROUNDS)
r['download over TCP, MB/s'] = SIZE / 1e6 / median(lambda: get(PLAIN, HTTP, False, SIZE), 3)
r['download over TLS, MB/s'] = SIZE / 1e6 / median(lambda: get(PLAIN, HTTPS, True, SIZE), 3)
r['request over TLS, ms'] = 1000 * median(lambda: get(PLAIN, HTTPS, True, 1), ROUNDS)
r['connections per second, 4 at a time'] = rate(lambda: echo(PLAIN, ECHO), 4, ROUNDS)
if OPENED:
    r['download over TLS, opened, MB/s'] = SIZE / 1e6 / median(lambda: get(OPENED, HTTPS, True, SIZE), 3)
    r['request over TLS, opened, ms'] = 1000 * median(lambda: get(OPENED, HTTPS, True, 1), ROUNDS)
print(json.dumps(r))
"""


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def _http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.split()[1].strip(b"/"))
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size)
        block = bytes(1 << 18)
        for at in range(0, size, len(block)):
            writer.write(block[: size - at])
            await writer.drain()
        writer.close()
        await writer.wait_closed()
    except (OSError, asyncio.IncompleteReadError):
        writer.close()


@contextmanager
def public_host(directory: Path) -> Iterator[Path]:
    """Serve on `ADDRESS`; the authority of its certificate."""
    authority, key = directory / "ca.pem", directory / "ca.key"
    make_authority(authority, key, "bench")
    pair = directory / "host.pem"
    pair.write_bytes(b"".join(issue(authority.read_bytes(), key.read_bytes(), NAMES)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    loop = asyncio.new_event_loop()

    async def start() -> None:
        await asyncio.start_server(_echo, ADDRESS, ECHO, backlog=1024)
        await asyncio.start_server(_http, ADDRESS, HTTP)
        await asyncio.start_server(_http, ADDRESS, HTTPS, ssl=context)

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield authority
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def program(plain: str, opened: str, rounds: int, size: int, roots: str) -> str:
    """The measuring program. Outside, `plain` is the address, which has no certificate of its own name."""
    values = {"PLAIN": plain, "OPENED": opened, "ROUNDS": rounds, "ROOTS": roots, "SIZE": size,
              "ECHO": ECHO, "HTTP": HTTP, "HTTPS": HTTPS}  # fmt: skip
    return "".join(f"{name} = {value!r}\n" for name, value in values.items()) + CLIENT + MEASURE


def outside(rounds: int, size: int, roots: str) -> dict[str, float]:
    """The same, by a plain Python; names are looked up in a table, as the sandbox's server does."""
    table = (
        "import socket\n_old = socket.getaddrinfo\n"
        f"socket.getaddrinfo = lambda host, *a, **k: "
        f"_old({ADDRESS!r} if host in {NAMES!r} else host, *a, **k)\n"
    )
    code = table + program(NAMES[1], "", rounds, size, roots)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def inside(server: Server, rounds: int, size: int, roots: str) -> dict[str, float]:
    """By the kernel of a sandbox, one of whose hosts has a rule."""
    rules = {NAMES[0]: [{"transform": {"headers": {"Authorization": "Bearer abc"}}}]}
    network: Any = {"allow_out": [f"{name}:*" for name in NAMES], "deny_out": ["0.0.0.0/0"], "rules": rules}
    with Sandbox.create(**server.options, network=network, timeout=900) as sandbox:
        result = sandbox.run_code(program(NAMES[1], NAMES[0], rounds, size, roots), timeout=600)
        if result.error is not None:
            raise SystemExit(f"the job did not work: {result.error.name}: {result.error.value}")
        figures: dict[str, float] = json.loads("".join(result.logs.stdout))
        return figures


def creating(server: Server, rounds: int) -> dict[str, float]:
    """Milliseconds of creating a sandbox, by what its request says of the network."""
    deny = ["0.0.0.0/0"]
    rules = {NAMES[0]: [{"transform": {"headers": {"X": "y"}}}]}
    kinds: dict[str, Any] = {
        "create, no word of the network": {},
        "create, 50 names allowed": {
            "network": {"allow_out": [f"h{n}.test" for n in range(50)], "deny_out": deny}
        },
        "create, with a rule": {"network": {"allow_out": [NAMES[0]], "deny_out": deny, "rules": rules}},
    }
    figures = {}
    for name, options in kinds.items():
        seconds = []
        for _ in range(rounds):
            started = time.perf_counter()
            sandbox = Sandbox.create(**server.options, **options)
            seconds.append(time.perf_counter() - started)
            sandbox.kill()
        figures[f"{name}, ms"] = 1000 * statistics.median(seconds)
    return figures


FILE = """
import json, time, urllib.request as u
page = u.Request('http://127.0.0.1:3129/pypi/0/simple/pandas/')
page.add_header('Accept', 'application/vnd.pypi.simple.v1+json')
files = json.load(u.urlopen(page, timeout=60))['files']
files = [f['url'] for f in files if 'cp311-manylinux_2_17_x86_64' in f['filename']]
start = time.perf_counter(); size = len(u.urlopen(files[-1], timeout=300).read())
print(size / 1e6, time.perf_counter() - start)
"""


def installing(server: Server) -> dict[str, float]:
    """Seconds of fetching one large wheel, and of pip with it: the first sandbox's, and the next one's."""
    figures: dict[str, float] = {}
    for name in ("first", "second"):
        with Sandbox.create(**server.options, timeout=600) as sandbox:
            fetched = sandbox.run_code(FILE, timeout=600)
            if fetched.error is not None:
                return {}
            size, seconds = map(float, "".join(fetched.logs.stdout).split())
            figures[f"wheel of {size:.0f} MB, {name} sandbox, s"] = seconds
            started = time.perf_counter()
            command = f"pip download -q --no-deps --no-cache-dir -d /tmp/wheels {WHEEL}"
            result = sandbox.commands.run(f"{command} 2>&1 || echo failed", timeout=300)
            if "failed" in result.stdout:
                return {}
            figures[f"pip download {WHEEL}, {name} sandbox, s"] = time.perf_counter() - started
    return figures


def measure(rounds: int, size: int) -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory(prefix="ringfence-bench-") as text:
        directory = Path(text)
        cache = directory / "cache"
        cache.mkdir()
        for path in default_cache_dir().iterdir():
            if path.name != "packages":
                (cache / path.name).symlink_to(path)
        with public_host(directory) as authority:
            environment = {
                "RINGFENCE_NETWORK_HOSTS": ",".join(f"{name}={ADDRESS}" for name in NAMES),
                "RINGFENCE_NETWORK_ALLOW_PRIVATE": ADDRESS,
                "RINGFENCE_NETWORK_ROOTS": str(authority),
                "RINGFENCE_NETWORK_CONNECTIONS_PER_SECOND": "100000",
                "RINGFENCE_CACHE_DIR": str(cache),
            }
            roots = authority.read_text()
            with serving("base", **environment) as server:
                return {
                    "outside": outside(rounds, size, roots),
                    "inside": inside(server, rounds, size, roots),
                    "create": creating(server, max(3, rounds // 4)),
                    "packages": installing(server),
                }


def show(figures: dict[str, Any]) -> None:
    """Print the figures, and how they compare."""
    direct = figures["outside"]
    print(f"\n{'':<44}{'inside':>10}{'outside':>10}{'ratio':>8}")
    for name, value in figures["inside"].items():
        other = direct.get(name) or direct.get(name.replace(", opened", ""))
        print(f"{name:<44}{value:>10.2f}{other:>10.2f}{value / other:>8.2f}")
    print()
    for name, value in {**figures["create"], **figures["packages"]}.items():
        print(f"{name:<44}{value:>10.2f}")
    if not figures["packages"]:
        print("pip: the index of this machine could not be reached")


def main() -> None:
    """Measure, print, and write the JSON."""
    arguments = asked(__doc__, rounds=100, mb=100)
    figures = measure(arguments.rounds, arguments.mb * 1_000_000)
    show(figures)
    write("network", figures)


if __name__ == "__main__":
    main()
