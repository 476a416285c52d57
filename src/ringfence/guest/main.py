"""PID 1 of a sandbox: serves envd and the code interpreter, reaps orphans, and ends with the launcher."""

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import Callable, Iterator, Sequence

import uvicorn
import uvicorn.lifespan.off  # uvicorn imports these two by name when it starts, too late for us
import uvicorn.protocols.http.httptools_impl

from ringfence.guest.app import ENVD_PORT, INTERPRETER_PORT, PortDispatch
from ringfence.guest.config import GuestConfig
from ringfence.guest.doors import Doors, ListeningDoors
from ringfence.guest.egress import mirror, proxy
from ringfence.guest.egress.gate import Gate
from ringfence.guest.egress.names import Names
from ringfence.guest.egress.service import EgressService
from ringfence.guest.envd import app as envd
from ringfence.guest.envd.users import UserDatabase
from ringfence.guest.interpreter import app as interpreter
from ringfence.guest.interpreter.nursery import NurseryClient
from ringfence.guest.interpreter.pool import KernelPool
from ringfence.guest.lifeline import Lifeline
from ringfence.guest.limits import LimitWatch
from ringfence.guest.marks import write_marks
from ringfence.guest.memory import MemoryMeter
from ringfence.guest.reaper import Reaper
from ringfence.guest.sudo.server import SudoServer
from ringfence.guest.sudo.server import listen as listen_for_sudo
from ringfence.guest.trust import ENVIRONMENT as TRUST_ENVIRONMENT
from ringfence.guest.trust import forget, trust


def run(
    config: GuestConfig,
    *,
    http: socket.socket,
    tunnels: socket.socket,
    nursery: socket.socket,
    egress: socket.socket,
    intake: socket.socket | None,
    counters: Sequence[int],
    lifeline: socket.socket,
    words: int,
    image: int | None = None,
) -> None:
    """Serve until killed.

    egress: the way out of the network. intake: gets the connections that the kernel leads to us, if it can.
    lifeline: is connected to the launcher: when it closes, the sandbox must end. words: the pipe in which the
    launcher is answered. image: a file with the state
    of another sandbox's kernels, to go on from.
    """
    meter = MemoryMeter(counters, config.memory_bytes)
    doors = ListeningDoors(http, tunnels, Lifeline(lifeline, words))
    run_behind(config, doors, nursery, lambda: Gate(egress), intake, meter, image)


def run_behind(
    config: GuestConfig,
    doors: Doors,
    nursery: socket.socket,
    make_gate: Callable[[], Gate],
    intake: socket.socket | None,
    meter: MemoryMeter,
    image: int | None = None,
) -> None:
    """As `run`, with what differs between the tiers made already: the doors, and the gate to the egress."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(_serve(config, doors, nursery, make_gate, intake, meter, image))


async def _serve(
    config: GuestConfig,
    doors: Doors,
    nursery: socket.socket,
    make_gate: Callable[[], Gate],
    intake: socket.socket | None,
    meter: MemoryMeter,
    image: int | None,
) -> None:
    if intake is None:
        config = dataclasses.replace(config, env={**proxy.ENVIRONMENT, **config.env})
    # Our own dictionary, to which variables are added when an authority is to be trusted later.
    config = dataclasses.replace(config, env=dict(config.env))
    if config.authority:
        _trust(config, config.authority)
    else:
        forget(config.volumes)
    reaper = Reaper()
    reaper.start()
    with contextlib.suppress(OSError):  # a snapshot whose /run was spoiled shall start all the same
        write_marks(config)
        SudoServer(config, UserDatabase(single_id=config.single_id), reaper).start(listen_for_sudo())
    limits = LimitWatch(meter, config.pids)
    kernels = KernelPool(config, _nursery(config, nursery, doors), meter, limits)
    doors.watch(kernels)
    services = {
        ENVD_PORT: envd.build(config, reaper, limits=limits),
        INTERPRETER_PORT: interpreter.build(config, kernels),
    }
    kernels.start(image)
    gate = make_gate()
    gate.on_trust = lambda authority: _trust(config, authority)
    gate.on_note = lambda text: kernels.note(f"[network: {text}]")
    await EgressService(gate, Names(), intake).start()
    await proxy.serve(gate)
    if config.mirror:
        mirror.serve(gate)
    server = _Server(_uvicorn(PortDispatch(services)), doors)
    await server.serve(sockets=[*doors.listeners, *_loopback_listeners()])


def _trust(config: GuestConfig, authority: str) -> None:
    trust(authority, config.volumes)
    for name, value in TRUST_ENVIRONMENT.items():
        config.env.setdefault(name, value)


def _nursery(config: GuestConfig, sock: socket.socket, doors: Doors) -> NurseryClient:
    if config.python:
        return NurseryClient(sock, always_fresh=config.fresh_kernels, renew=doors.renew_nursery)
    return NurseryClient(
        sock, "this template runs commands only: it was built from an image and has no kernels"
    )


def _uvicorn(app: PortDispatch) -> uvicorn.Config:
    return uvicorn.Config(
        app, http="httptools", ws="none", lifespan="off", loop="none", access_log=False, log_config=None,
        timeout_keep_alive=3600, server_header=False, date_header=False, proxy_headers=False,
    )  # fmt: skip


def _loopback_listeners() -> list[socket.socket]:
    """Both services also answer inside, as E2B's do: ``curl localhost:49999/health``."""
    listeners = []
    for port in (ENVD_PORT, INTERPRETER_PORT):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listeners.append(listener)
    return listeners


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, doors: Doors) -> None:
        super().__init__(config)
        self._doors = doors

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        await self._doors.open(self)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # PID 1 ignores what it has no handler for, and nobody inside shall be able to end it.
        yield
