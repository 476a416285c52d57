"""The guest zygote: our Python with the guest's code imported, which forks the PID 1 of each sandbox.

It runs only our own code and stays single-threaded. What it forks gives up everything step by step (see
`sandbox`).
"""

import gc
import os
import signal
import socket
import sys

from ringfence.engine.isolation import linux, procfs, seccomp
from ringfence.engine.zygote import channel, sandbox


def serve(requests: socket.socket) -> None:
    """Say that we are ready, then fork a sandbox for each request until the launcher closes the channel.

    A request carries the settings of one sandbox and its `Descriptors`. The forked child answers on the
    report channel, not here.
    """
    program = seccomp.build()
    procfs.host_processor()  # slow to read on large machines, and the same for every sandbox
    gc.collect()
    gc.freeze()
    channel.send(requests, {"ready": True})
    while True:
        try:
            request, fds = channel.receive(requests)
        except channel.ChannelClosedError:
            return
        if os.fork() == 0:
            requests.close()
            sandbox.start(request, fds, program)
            os._exit(0)
        channel.close_all(fds)


def main() -> None:
    """Entry point of the process; argv[1] is the number of the channel's descriptor."""
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(
        signal.SIGCHLD, signal.SIG_IGN
    )  # the children's parents do not wait: the launcher adopts them
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
