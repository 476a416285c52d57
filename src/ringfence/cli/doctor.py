"""``ringfence doctor``: what would be used, whether it works, and which layers of isolation are in force."""

import asyncio
import json
import platform
import time
from typing import Any

import click

from ringfence import __version__
from ringfence.cli.leaving import leave


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Say which backend is used, whether it works, and how it isolates.

    Opens the backend, runs a line of Python in a fresh sandbox and ends it. Exit status 0: it works; 1: it
    does not.
    """
    report = asyncio.run(_examine())
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        click.echo("\n".join(_as_text(report)))
    leave(0 if report["works"] else 1)


async def _examine() -> dict[str, Any]:
    from ringfence.core.config import load_settings
    from ringfence.core.errors import RingfenceError
    from ringfence.integrations.backend import open_backend

    report: dict[str, Any] = {
        "version": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "backend": None,
        "works": False,
        "error": None,
        "isolation": None,
        "times_s": {},
    }
    started = time.monotonic()
    try:
        settings = load_settings()
        report["backend"] = settings.choose_backend()
        async with open_backend(settings, progress=lambda line: click.echo(line, err=True)) as backend:
            report["times_s"]["backend ready"] = round(time.monotonic() - started, 3)
            report["where"] = backend.describe()
            report["template"] = backend.template or "default"
            report["isolation"] = backend.isolation
            await _try_a_sandbox(backend, report)
    except RingfenceError as error:
        report["error"] = str(error)
    return report


async def _try_a_sandbox(backend: Any, report: dict[str, Any]) -> None:
    import httpx
    from e2b import AuthenticationException, SandboxException
    from e2b_code_interpreter import AsyncSandbox

    try:
        started = time.monotonic()
        sandbox = await AsyncSandbox.create(template=backend.template, timeout=60, **backend.sdk_options())
        created = time.monotonic()
        try:
            execution = await sandbox.run_code("import sys; sys.version.split()[0]", timeout=30)
            ran = time.monotonic()
        finally:
            await sandbox.kill()
    except (SandboxException, AuthenticationException, httpx.HTTPError) as error:
        report["error"] = f"no code could be run: {error}"
        return
    report["times_s"] |= {
        "sandbox created": round(created - started, 3),
        "first line of code": round(ran - created, 3),
    }
    report["sandbox_python"] = (execution.text or "").strip("'")
    report["works"] = execution.error is None and bool(execution.text)
    if execution.error is not None:
        report["error"] = f"{execution.error.name}: {execution.error.value}"


def _as_text(report: dict[str, Any]) -> list[str]:
    lines = [f"Ringfence {report['version']}, Python {report['python']}, Linux {report['kernel']}"]
    lines.append(
        f"backend: {report['backend'] or 'none'}" + (f" — {report['where']}" if "where" in report else "")
    )
    if "sandbox_python" in report:
        lines.append(f"template: {report['template']}, Python {report['sandbox_python']}")
    lines += [f"{name}: {seconds:.3f} s" for name, seconds in report["times_s"].items()]
    if report["isolation"] is not None:
        lines += ["", f"isolation: {report['isolation'].get('level', 'unknown')}"]
        lines += _layers(report["isolation"].get("layers", []))
    elif report["backend"] == "e2b" and report["works"]:
        lines.append("isolation: E2B's own (one microVM per sandbox); it is not reported")
    lines += ["", "It works." if report["works"] else f"It does not work: {report['error']}"]
    return lines


def _layers(layers: list[dict[str, Any]]) -> list[str]:
    width = max((len(layer["name"]) for layer in layers), default=0)
    lines = []
    for layer in layers:
        lines.append(
            f"  {'yes' if layer['in_force'] else 'NO ':<3}  {layer['name']:<{width}}  {layer['detail']}"
        )
        if not layer["in_force"] and layer.get("remedy"):
            lines.append(f"       {'':<{width}}  remedy: {layer['remedy']}")
    return lines
