"""``ringfence run``: one script in one fresh sandbox, as if it ran here."""

import asyncio
import signal
import sys
from pathlib import Path

import click


@click.command("run", context_settings={"allow_interspersed_args": False})
@click.option("-c", "code", metavar="CODE", help="Run CODE instead of a file.")
@click.option(
    "--file",
    "files",
    multiple=True,
    metavar="HOST[:INSIDE]",
    help="Put a file or directory in (to /home/user).",
)
@click.option(
    "--out", "outputs", multiple=True, metavar="INSIDE[:HOST]", help="Bring a file or directory back."
)
@click.option(
    "--figures",
    type=click.Path(path_type=Path, file_okay=False),
    default="figures",
    show_default=True,
    help="Directory for the pictures that the code shows; made when there is one.",
)
@click.option("--template", help="Template of the sandbox.")
@click.option(
    "--network",
    metavar="WHAT",
    help="What it may reach: none, packages, internet, or names and blocks by commas. learn: the internet; "
    "prints which names it needed.",
)
@click.option(
    "--timeout",
    "exec_timeout",
    type=click.FloatRange(0, 86_400, min_open=True),
    default=3600.0,
    show_default=True,
    help="Seconds after which the script is ended.",
)
@click.argument("script", required=False)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def command(
    code: str | None,
    files: tuple[str, ...],
    outputs: tuple[str, ...],
    figures: Path,
    template: str | None,
    network: str | None,
    exec_timeout: float,
    script: str | None,
    args: tuple[str, ...],
) -> None:
    """Run SCRIPT (- for standard input) in a fresh sandbox, with ARGS.

    Standard output, standard error and the exit status are the script's own. 124: it was ended at the
    timeout; 130: interrupted; 125: it was not run, for want of a sandbox or of a file. 1 also when a script
    succeeded, but its --out files or pictures could not be brought back.
    """
    from ringfence.cli.leaving import leave
    from ringfence.cli.one_shot import OneShot, run_one_shot
    from ringfence.core.config import load_settings

    if code is not None:
        args = (script, *args) if script is not None else args
        name, source = "-c", code.encode()
    elif script is None:
        raise click.UsageError("Give a script, - for standard input, or -c CODE.")
    else:
        name, source = _read(script)
    for host, _ in map(_pair, files):
        if not Path(host).exists():
            raise click.UsageError(f"--file {host}: there is no such file")
    job = OneShot(
        name=name,
        source=source,
        args=args,
        files=tuple(_pair(text) for text in files),
        outputs=tuple(_pair(text) for text in outputs),
        figures=figures,
        exec_timeout=exec_timeout,
        network=network,
    )
    settings = load_settings()
    if template is not None:
        settings = settings.model_copy(update={"template": template})
    try:
        leave(asyncio.run(run_one_shot(job, settings)))
    except KeyboardInterrupt:
        leave(128 + signal.SIGINT)
    except asyncio.CancelledError:
        leave(128 + signal.SIGTERM)


def _read(script: str) -> tuple[str, bytes]:
    if script == "-":
        return "-", sys.stdin.buffer.read()
    try:
        return Path(script).name, Path(script).read_bytes()
    except OSError as error:
        raise click.UsageError(f"{script}: {error.strerror}") from error


def _pair(text: str) -> tuple[str, str | None]:
    """``A:B`` as A and B; ``A`` alone as A and None."""
    first, colon, second = text.partition(":")
    if not first or (colon and not second):
        raise click.UsageError(f"{text!r} should be a path, or two paths with a colon between.")
    return first, second or None
