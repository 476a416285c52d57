"""``ringfence template``: list, build and delete templates.

The built-in templates are on this machine and need no server. Those that users build belong to a server;
which one, and as whom, is said by the same settings as for all commands (`elsewhere`): ``RINGFENCE_URL`` and
``RINGFENCE_API_KEY``, or ``E2B_API_KEY`` and what the SDK reads beside it.
"""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ringfence.cli.template_server import TemplateServer


@click.group("template")
def command() -> None:
    """List, build and delete templates."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_templates(as_json: bool) -> None:
    """List the built-in templates and, when a server is named in the environment, those on it."""
    rows = _builtin_rows()
    server = _server()
    if server is not None:
        known = {row["name"] for row in rows}
        rows += [row for row in server.list() if row["name"] not in known]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    width = max(len(str(row["name"])) for row in rows)
    for row in rows:
        click.echo(f"{row['name']:<{width}}  {row['summary']}{' (default)' if row['default'] else ''}")


@command.command("build")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--cache-dir", type=click.Path(path_type=Path), envvar="RINGFENCE_CACHE_DIR", help="Where to build it."
)
@click.option(
    "-f", "--file", "dockerfile", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Build NAME on the server from this Dockerfile; its directory is the context.",
)  # fmt: skip
@click.option("--start", help="With --file: a command that runs in each sandbox of the template.")
@click.option("--ready", help="With --file: a command that succeeds when that one is up.")
@click.option("--no-cache", is_flag=True, help="With --file: run every step anew.")
def build(
    names: tuple[str, ...],
    cache_dir: Path | None,
    dockerfile: Path | None,
    start: str | None,
    ready: str | None,
    no_cache: bool,
) -> None:
    """Build built-in templates that are not built yet (the default one if none is named), or, with --file, a
    template of your own on a server.
    """
    if dockerfile is None:
        _build_builtin(names, cache_dir)
        return
    if len(names) != 1:
        raise click.UsageError("--file builds one template: give its NAME, or NAME:TAG")
    _needed_server().build(names[0], dockerfile, start=start, ready=ready, no_cache=no_cache)


@command.command("delete")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def delete(names: tuple[str, ...]) -> None:
    """Delete templates, by name or id, from the server. Sandboxes that run are left alone."""
    server = _needed_server()
    for name in names:
        server.delete(name)
        click.echo(f"{name}: deleted")


def _builtin_rows() -> list[dict[str, Any]]:
    from ringfence.engine.templates.builtin import BUILTIN, DEFAULT_TEMPLATE

    return [
        {
            "name": definition.name,
            "default": definition.name == DEFAULT_TEMPLATE,
            "summary": definition.summary,
        }
        for definition in BUILTIN.values()
    ]


def _build_builtin(names: tuple[str, ...], cache_dir: Path | None) -> None:
    from ringfence.engine.settings import default_cache_dir
    from ringfence.engine.templates.build import ensure_template
    from ringfence.engine.templates.builtin import DEFAULT_TEMPLATE

    for name in names or (DEFAULT_TEMPLATE,):
        started = time.monotonic()
        template = ensure_template(
            name, cache_dir or default_cache_dir(), lambda line: click.echo(line, err=True)
        )
        seconds = time.monotonic() - started
        click.echo(
            f"{name}: ready in {seconds:.1f} s, Python {template.python_version}, "
            f"{len(template.packages)} packages"
        )


def _server() -> "TemplateServer | None":
    from ringfence.cli.elsewhere import named_options

    options = named_options()
    if options is None:
        return None
    from ringfence.cli.template_server import TemplateServer  # slow to import

    return TemplateServer(options)


def _needed_server() -> "TemplateServer":
    from ringfence.cli.elsewhere import sdk_options
    from ringfence.cli.template_server import TemplateServer

    return TemplateServer(sdk_options())
