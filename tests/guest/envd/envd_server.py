"""Serves envd alone, without a sandbox, for tests. The one argument is JSON: config, passwd, group.

Prints the port it listens on (loopback only) and serves until its standard input is closed.
"""

import asyncio
import json
import socket
import sys
from pathlib import Path

import uvicorn

from ringfence.guest.config import GuestConfig
from ringfence.guest.envd.app import build
from ringfence.guest.envd.users import UserDatabase
from ringfence.guest.reaper import Reaper


async def serve(setup: dict) -> None:
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
    print(listener.getsockname()[1], flush=True)
    loop = asyncio.get_running_loop()
    loop.add_reader(0, lambda: (loop.remove_reader(0), setattr(server, "should_exit", True)))
    await server.serve(sockets=[listener])


asyncio.run(serve(json.loads(sys.argv[1])))
