"""``ringfence logs``: what happened to a sandbox, and what it was refused."""

import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import click

from ringfence.cli.tame import tame

_AGAIN_SECONDS = 1.0
_LEVELS = ("debug", "info", "warning", "error")


@click.command("logs")
@click.argument("sandbox")
@click.option("-f", "--follow", is_flag=True, help="Go on until the sandbox ends.")
@click.option("--level", type=click.Choice(_LEVELS), default="debug", help="Leave out what is below.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object per line.")
def command(sandbox: str, follow: bool, level: str, as_json: bool) -> None:
    """Print the log of SANDBOX (an id, as `ringfence ps` shows it).

    It has the events in its life, what it reached, and what the network policy refused, with the rule and
    what would allow it. The server is named by RINGFENCE_URL and RINGFENCE_API_KEY.
    """
    shown = _LEVELS.index(level)
    for entry in _entries(sandbox, follow=follow):
        if entry["level"] in _LEVELS and _LEVELS.index(entry["level"]) < shown:
            continue
        if as_json:
            click.echo(json.dumps({key: entry[key] for key in ("timestamp", "level", "message")}))
        else:
            click.echo(tame(f"{entry['timestamp']}  {entry['level']:<7}  {entry['message']}"))


def _entries(sandbox: str, *, follow: bool) -> Iterator[dict[str, Any]]:
    """The entries in order, each once. Raises click.ClickException."""
    import httpx
    from e2b import ConnectionConfig

    from ringfence.cli.elsewhere import sdk_options

    config = ConnectionConfig(**sdk_options())
    seen: set[str] = set()
    with httpx.Client(base_url=config.api_url, headers={"X-API-KEY": config.api_key or ""}) as client:
        while True:
            try:
                answer = client.get(f"/sandboxes/{quote(sandbox, safe='')}/logs", params={"limit": 1000})
            except httpx.HTTPError as error:
                raise click.ClickException(f"{config.api_url}: {error or type(error).__name__}") from error
            if answer.status_code == httpx.codes.NOT_FOUND and seen:
                return
            if answer.status_code != httpx.codes.OK:
                raise click.ClickException(_reason(answer))
            page = {json.dumps(entry, sort_keys=True): entry for entry in answer.json()["logEntries"]}
            yield from (entry for key, entry in page.items() if key not in seen)
            seen = set(page)  # what the server has dropped does not come again
            if not follow:
                return
            time.sleep(_AGAIN_SECONDS)


def _reason(answer: Any) -> str:
    try:
        return str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {answer.status_code}"
