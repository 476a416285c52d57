"""Serves envd alone, without a sandbox, for tests. The one argument is JSON: config, passwd, group.

Prints the port it listens on (loopback only) and serves until its standard input is closed.
"""

import asyncio
import json
import resource
import socket
import sys
from pathlib import Path

import uvicorn

from ringfence.guest.config import GuestConfig
from ringfence.guest.envd.app import build
from ringfence.guest.envd.users import UserDatabase
from ringfence.guest.reaper import Reaper


class LateImports:
    """Notes modules that are imported while serving. In a sandbox their files would not be there any more."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        self.names.append(name)


async def serve(setup: dict) -> list[str]:
    if "file_bytes" in setup:
        resource.setrlimit(resource.RLIMIT_FSIZE, (setup["file_bytes"],) * 2)
    config = GuestConfig(**setup["config"])
    users = UserDatabase(single_id=config.single_id, passwd=Path(setup["passwd"]), group=Path(setup["group"]))
    reaper = Reaper()
    reaper.start()
    # With the protocol named: asyncio sets TCP_NODELAY only then, and without it each answer waits 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    server = uvicorn.Server(
        uvicorn.Config(
            build(config, reaper, users),
            http="httptools",
            loop="asyncio",
            lifespan="off",
            log_level="warning",
            timeout_graceful_shutdown=1,
        )
    )
    server.config.load()
    late = LateImports()
    sys.meta_path.insert(0, late)
    print(listener.getsockname()[1], flush=True)
    loop = asyncio.get_running_loop()
    loop.add_reader(0, lambda: (loop.remove_reader(0), setattr(server, "should_exit", True)))
    await server.serve(sockets=[listener])
    return late.names


late = asyncio.run(serve(json.loads(sys.argv[1])))
sys.exit(f"imported while serving: {late}" if late else 0)
