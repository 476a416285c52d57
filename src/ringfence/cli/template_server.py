"""The templates of a server, for the command line: built with the SDK, listed and deleted by HTTP."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import httpx
from e2b import ConnectionConfig, LogEntry, Template
from e2b.exceptions import BuildException, SandboxException

from ringfence.cli.tame import tame

_TIMEOUT = 60.0


class TemplateServer:
    """A server that speaks E2B's protocol. options: the SDK's, to reach it."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        config = ConnectionConfig(**options)
        self._url = config.api_url.rstrip("/")
        self._key = config.api_key or ""

    def list(self) -> list[dict[str, Any]]:
        """A row for each template: ``name``, ``default``, ``summary``. Raises click.ClickException."""
        return [
            {
                "name": next(iter(entry["names"]), entry["templateID"]),
                "default": False,
                "summary": f"{entry['buildStatus']}, {entry['cpuCount']} CPU, {entry['memoryMB']} MiB, "
                f"id {entry['templateID']}",
            }
            for entry in self._call("GET", "/templates").json()
        ]

    def delete(self, name: str) -> None:
        """Delete a template. Raises click.ClickException."""
        self._call("DELETE", f"/templates/{quote(name, safe='')}")

    def build(
        self, name: str, dockerfile: Path, *, start: str | None, ready: str | None, no_cache: bool
    ) -> None:
        """Build a template from a Dockerfile and show its log. Raises click.ClickException."""
        template: Any = Template(file_context_path=dockerfile.resolve().parent)
        try:
            template = template.from_dockerfile(dockerfile.read_text(encoding="utf-8"))
        except (OSError, ValueError, BuildException) as error:
            raise click.ClickException(f"{dockerfile}: {error}") from error
        if start:
            template = template.set_start_cmd(start, ready or "true")
        elif ready:
            template = template.set_ready_cmd(ready)
        try:
            info = Template.build(template, name, skip_cache=no_cache, on_build_logs=_show, **self._options)
        except (BuildException, SandboxException, httpx.HTTPError, ValueError) as error:
            raise click.ClickException(str(error)) from error
        click.echo(f"{name}: built, id {info.template_id}")

    def _call(self, method: str, path: str) -> httpx.Response:
        try:
            answer = httpx.request(
                method, self._url + path, headers={"X-API-Key": self._key}, timeout=_TIMEOUT
            )
        except httpx.HTTPError as error:
            raise click.ClickException(f"{self._url} does not answer: {error}") from error
        if answer.is_error:
            try:
                message = answer.json()["message"]
            except (ValueError, KeyError, TypeError):
                message = f"status {answer.status_code}"
            raise click.ClickException(str(message))
        return answer


def _show(entry: LogEntry) -> None:
    click.echo(tame(entry.message), err=True)
