"""``ringfence ps``: the sandboxes of a server."""

import datetime
import json
from typing import TYPE_CHECKING, Any

import click

from ringfence.cli.tame import tame

if TYPE_CHECKING:
    from e2b import SandboxInfo

_COLUMNS = ("id", "state", "template", "age", "ends in", "cpus", "memory", "metadata")


@click.command("ps")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
def command(as_json: bool, quiet: bool) -> None:
    """List the sandboxes of your key, running and paused, oldest first.

    The server is named by RINGFENCE_URL and RINGFENCE_API_KEY; with E2B_API_KEY alone it is E2B's cloud.
    """
    sandboxes = _all()
    if quiet:
        for one in sandboxes:
            click.echo(one.sandbox_id)
    elif as_json:
        click.echo(json.dumps([_record(one) for one in sandboxes], indent=2))
    else:
        _print_table([_row(one) for one in sandboxes])


def _all() -> "list[SandboxInfo]":
    import httpx
    from e2b import Sandbox
    from e2b.exceptions import AuthenticationException, SandboxException

    from ringfence.cli.elsewhere import sdk_options

    pages = Sandbox.list(order="asc", **sdk_options())
    found = []
    try:
        while pages.has_next:
            found += pages.next_items()
    except (SandboxException, AuthenticationException, httpx.HTTPError) as error:
        raise click.ClickException(str(error) or type(error).__name__) from error
    return found


def _record(one: "SandboxInfo") -> dict[str, Any]:
    return {
        "id": one.sandbox_id,
        "state": one.state.value,
        "template": one.name or one.template_id,
        "started_at": one.started_at.isoformat(),
        "ends_at": one.end_at.isoformat(),
        "cpus": one.cpu_count,
        "memory_mb": one.memory_mb,
        "metadata": one.metadata,
    }


def _row(one: "SandboxInfo") -> tuple[str, ...]:
    now = datetime.datetime.now(datetime.UTC)
    paused = one.state.value == "paused"
    return (
        one.sandbox_id,
        one.state.value,
        one.name or one.template_id,
        _duration(now - one.started_at),
        "-" if paused else _duration(one.end_at - now),
        str(one.cpu_count),
        f"{one.memory_mb} MiB",
        " ".join(f"{key}={value}" for key, value in sorted(one.metadata.items())),
    )


def _duration(span: datetime.timedelta) -> str:
    seconds = max(0, round(span.total_seconds()))
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds} s"


def _print_table(rows: list[tuple[str, ...]]) -> None:
    table = [_COLUMNS, *rows]
    widths = [max(len(row[at]) for row in table) for at in range(len(_COLUMNS))]
    for row in table:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        click.echo(tame(line.replace("\n", " ")).rstrip())
