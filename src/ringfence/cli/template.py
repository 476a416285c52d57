"""``ringfence template``: list and build templates."""

import json
import time
from pathlib import Path

import click


@click.group("template")
def command() -> None:
    """List and build templates."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_templates(as_json: bool) -> None:
    """List the built-in templates."""
    from ringfence.engine.templates.builtin import BUILTIN, DEFAULT_TEMPLATE

    rows = [
        {
            "name": definition.name,
            "default": definition.name == DEFAULT_TEMPLATE,
            "summary": definition.summary,
        }
        for definition in BUILTIN.values()
    ]
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
def build(names: tuple[str, ...], cache_dir: Path | None) -> None:
    """Build templates that are not built yet (the default one if none is named)."""
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
