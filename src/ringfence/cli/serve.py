"""``ringfence serve``: the options are the fields of the server's settings, which also read
``RINGFENCE_…`` variables.
"""

import sys
from pathlib import Path
from typing import Any

import click


@click.command("serve")
@click.option("--host", help="Address to listen on (default 127.0.0.1).")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port to listen on (default 3000); 0 takes any free one."
)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where keys and state are kept.")
@click.option("--templates", help="Templates to warm and serve, separated by commas.")
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where built templates are cached.")
@click.option("--runtime-dir", type=click.Path(path_type=Path), help="Where sockets of sandboxes are.")
@click.option("--domain", help="Domain under which <port>-<sandbox id>.<domain> reaches sandboxes.")
@click.option(
    "--tls-cert", type=click.Path(path_type=Path), help="Certificate chain (PEM) to serve HTTPS with."
)
@click.option("--tls-key", type=click.Path(path_type=Path), help="Private key (PEM) of the certificate.")
@click.option("--tls", is_flag=True, default=None, help="Serve HTTPS with a certificate made for local use.")
@click.option(
    "--plain-http",
    is_flag=True,
    default=None,
    help="Serve beyond loopback without TLS, behind a proxy or in a network you trust.",
)
@click.option("--allowed-hosts", help="Further host names under which the API may be addressed, by commas.")
@click.option(
    "--level",
    type=click.Choice(["best-effort", "standard", "strict"]),
    help="Isolation that must be in force, at least, for the server to start.",
)
@click.option(
    "--isolation",
    type=click.Choice(["process", "gvisor"]),
    help="Tier that every sandbox has at least; gvisor needs runsc.",
)
@click.option(
    "--gvisor-platform",
    type=click.Choice(["auto", "systrap", "ptrace", "kvm"]),
    help="How gVisor catches system calls.",
)
@click.option("--max-sandboxes", type=click.IntRange(1), help="Sandboxes that may run at once.")
@click.option("--max-paused", type=click.IntRange(0), help="Sandboxes that may be paused, beside those.")
@click.option("--max-snapshots", type=click.IntRange(0), help="Snapshots that may be kept.")
@click.option("--max-volumes", type=click.IntRange(0), help="Volumes that one owner may have.")
@click.option("--volume-size-mb", type=click.IntRange(16), help="Size of a volume, in MiB.")
@click.option(
    "--unbounded-volumes",
    is_flag=True,
    default=None,
    help="Allow volumes without a limit where none can be enforced; they can fill the disk.",
)
@click.option("--max-memory-mb", type=click.IntRange(64), help="Ceiling of one sandbox's memory, in MiB.")
@click.option("--total-memory-mb", type=click.IntRange(64), help="Memory of all sandboxes together, in MiB.")
@click.option("--total-cpus", type=float, help="Processors of all sandboxes together.")
@click.option("--total-pids", type=click.IntRange(64), help="Processes of all sandboxes together.")
@click.option(
    "--rotate-after",
    type=click.IntRange(0),
    help="Sandboxes after which warmed interpreters are replaced (default 1000); 0: never.",
)
@click.option("--rotate-minutes", type=float, help="Minutes after which too (default 720); 0: never.")
@click.option("--seccomp-log", is_flag=True, default=None, help="Have the kernel log refused system calls.")
@click.option(
    "--fresh-kernels/--forked-kernels",
    default=None,
    help="Start each kernel as a new program, with its own hash seed and memory layout; slower.",
)
@click.option(
    "--max-timeout", type=click.IntRange(1), help="Longest lease that may be asked for, in seconds."
)
@click.option("--max-upload-mb", type=click.IntRange(1), help="Largest body of one request, in MiB.")
@click.option(
    "--gradual-warmup",
    is_flag=True,
    default=None,
    help="Be ready before the templates are fully warmed; go on when idle.",
)
@click.option(
    "--network-default", help="What sandboxes may reach unless they ask: none, packages, internet, or a list."
)
@click.option("--network-ceiling", help="What no sandbox may go past, in the same form.")
@click.option("--network-allow-private", help="Private or own addresses that policies may allow, by commas.")
@click.option("--network-hosts", help="Fixed addresses of names, as name=address, by commas.")
@click.option(
    "--network-roots",
    type=click.Path(path_type=Path),
    help="PEM file of authorities to trust, beside this machine's, where headers are changed.",
)
@click.option("--network-connections", type=click.IntRange(1), help="Connections a sandbox may have at once.")
@click.option(
    "--network-connections-per-second", type=click.IntRange(1), help="New ones per second, on average."
)
@click.option(
    "--package-cache-mb",
    type=click.IntRange(0),
    help="Size of the shared cache of packages, in MiB; 0: no mirror and no cache.",
)
@click.option(
    "--image-dir",
    type=click.Path(path_type=Path),
    help="Directory whose OCI layouts and image archives templates may be built from.",
)
@click.option(
    "--image-registries", help="Registries that may be used though their addresses are private, by commas."
)
@click.option(
    "--ready-fd", type=click.IntRange(0), help="Descriptor that gets a line of JSON when it is ready."
)
@click.option("--lifeline-fd", type=click.IntRange(0), help="Descriptor whose end of file stops the server.")
@click.option(
    "--log-level", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]), help="How much is logged."
)
def command(**options: Any) -> None:
    """Run a server that speaks E2B's protocol, in the foreground.

    Control plane and sandbox traffic share one URL: set E2B_API_URL and E2B_SANDBOX_URL to it, and
    E2B_API_KEY to a key of the server. RINGFENCE_API_KEY presets the key; otherwise one is made and printed
    once at the first start. Every option is also a variable, e.g. RINGFENCE_PORT.
    """
    from pydantic import ValidationError

    from ringfence.core.errors import ConfigurationError
    from ringfence.server.serve import run
    from ringfence.server.settings import ServeSettings

    given = {name: value for name, value in options.items() if value is not None}
    try:
        settings = ServeSettings(**given)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            for problem in error.errors(include_input=False)
        )
        raise ConfigurationError(f"wrong setting: {problems}") from None
    sys.exit(run(settings))
