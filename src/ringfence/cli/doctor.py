"""``ringfence doctor``: what would be used, whether it works, which layers hold, and what attacks show."""

import asyncio
import json
import platform
import time
from typing import Any, Literal

import click

from ringfence import __version__
from ringfence.cli.leaving import leave
from ringfence.cli.trial import try_backend

_ATTACKED_TEMPLATE = "base"


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--quick", is_flag=True, help="Run the essential attacks only, as a server does when it starts."
)
@click.option(
    "--level",
    type=click.Choice(["best-effort", "standard", "strict"]),
    default="best-effort",
    help="Isolation that is wanted, at least.",
)
@click.option(
    "--isolation",
    type=click.Choice(["process", "gvisor"]),
    default="process",
    help="Tier whose sandboxes are attacked; gvisor needs runsc.",
)
def command(as_json: bool, quick: bool, level: str, isolation: str) -> None:
    """Say which backend is used, whether it works, and how it isolates.

    Opens the backend, runs a line of Python in a fresh sandbox and ends it. Where sandboxes run on this
    machine they are also attacked from within. Exit status 0: it works; 1: it does not; 2: it works, but an
    attack got through or less isolation than --level is in force.
    """
    report = asyncio.run(_examine("essential" if quick else "all", isolation))
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        click.echo("\n".join(_as_text(report)))
    works = report["works"] and all(other["works"] for other in report.get("others", ()))
    leave(_status(report, level) if works else 1)


def _status(report: dict[str, Any], wanted: str) -> int:
    from ringfence.engine.isolation_report import LEVELS

    if report["isolation"] is None:
        return 0
    proven = report["proof"] is None or report["proof"]["contained"] == report["proof"]["total"]
    level = report["isolation"].get("level")
    return 0 if level in LEVELS[LEVELS.index(wanted) :] and proven else 2


async def _examine(which: Literal["essential", "all"], tier: str) -> dict[str, Any]:
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
        "network": None,
        "isolation": None,
        "proof": None,
        "times_s": {},
    }
    started = time.monotonic()
    try:
        settings = load_settings()
        report["backend"] = settings.choose_backend()
        policy = settings.policy()
        async with open_backend(settings, progress=_say) as backend:
            report["times_s"]["backend ready"] = round(time.monotonic() - started, 3)
            report["where"] = backend.describe()
            report["template"] = backend.template or "default"
            report["isolation"] = backend.isolation
            report["network"] = await _network(backend, settings.mcp_network)
            found = await try_backend(backend)
        times = report["times_s"] | found.pop("times_s")
        report |= {**found, "times_s": times}
        if report["backend"] == "local" and report["works"]:
            report["proof"] = await _attack(which, tier)
        if policy is not None:
            report["others"] = [
                await _try_another(settings, name) for name in sorted(policy.backends() - {report["backend"]})
            ]
    except RingfenceError as error:
        report["error"] = str(error)
    return report


async def _try_another(settings: Any, name: Any) -> dict[str, Any]:
    """A backend that the policy names beside its default."""
    from ringfence.core.errors import RingfenceError
    from ringfence.integrations.backend import open_backend

    try:
        async with open_backend(settings, name=name, progress=_say) as backend:
            return {"backend": name, "where": backend.describe(), **await try_backend(backend)}
    except RingfenceError as error:
        return {"backend": name, "works": False, "error": str(error)}


def _say(line: str) -> None:
    click.echo(line, err=True)


async def _network(backend: Any, mcp: str) -> dict[str, Any] | None:
    """What sandboxes may reach by default and at most, where the backend says so."""
    import httpx

    if backend.api_url is None:
        return None
    try:
        async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
            answer = await client.get(f"{backend.api_url}/health", headers={"X-API-KEY": backend.api_key})
            health = answer.json()
    except (httpx.HTTPError, ValueError):
        return None
    found = health.get("network")
    return {**found, "mcp": mcp} if isinstance(found, dict) else None


async def _attack(which: Literal["essential", "all"], tier: Any) -> dict[str, Any]:
    """Attack a sandbox of an engine of our own, whose environment holds a word to look for."""
    import os
    import secrets

    from ringfence.engine.engine import Engine
    from ringfence.engine.proof.battery import run_probes
    from ringfence.engine.settings import EngineSettings

    canary = os.environ["RINGFENCE_DOCTORS_WORD"] = secrets.token_hex(20)
    engine = await Engine.start(EngineSettings(templates=(_ATTACKED_TEMPLATE,), isolation=tier))
    try:
        return (await run_probes(engine, _ATTACKED_TEMPLATE, which, canary)).as_dict()
    finally:
        await engine.aclose()


def _as_text(report: dict[str, Any]) -> list[str]:
    lines = [f"Ringfence {report['version']}, Python {report['python']}, Linux {report['kernel']}"]
    lines.append(
        f"backend: {report['backend'] or 'none'}" + (f" — {report['where']}" if "where" in report else "")
    )
    if report.get("key") is not None and report["backend"] != "local":
        lines.append(f"key: {report['key']}")
    if "sandbox_python" in report:
        lines.append(f"template: {report['template']}, Python {report['sandbox_python']}")
    lines += [f"{name}: {seconds:.3f} s" for name, seconds in report["times_s"].items()]
    if report["network"] is not None:
        rules = report["network"]
        lines.append(
            f"network: {rules['default']} by default, {rules['ceiling']} at most; "
            f"the MCP server asks for {rules['mcp']}"
        )
    if report["isolation"] is not None:
        lines += ["", f"isolation: {report['isolation'].get('level', 'unknown')}"]
        lines += _layers(report["isolation"].get("layers", []))
        lines += _tier(report["isolation"])
        lines += ["", "beside isolation:", *_layers(report["isolation"].get("features", []))]
        lines += _attacks(report["proof"]) if report["proof"] else []
    elif report["backend"] == "e2b" and report["works"]:
        lines.append("isolation: E2B's own (one microVM per sandbox); it is not reported")
    for other in report.get("others", ()):
        said = "works" if other["works"] else f"does not work: {other['error']}"
        lines.append(f"also, by the policy: {other.get('where', other['backend'])} {said}")
    lines += ["", "It works." if report["works"] else f"It does not work: {report['error']}"]
    return lines


def _tier(isolation: dict[str, Any]) -> list[str]:
    """The harder tier: whether it can be had, and what to do when not."""
    gvisor = isolation.get("gvisor")
    if gvisor is None:
        return []
    said = "yes" if gvisor["available"] else "no "
    return ["", f"tier: {isolation['tier']}", f"  {said}  gVisor  {gvisor['detail']}"]


def _attacks(proof: dict[str, Any]) -> list[str]:
    """Verdicts by category; each attack that got through, or did not apply, by name."""
    verdicts = ("contained", "not applicable", "got through")
    counts: dict[str, dict[str, int]] = {}
    named = []
    for finding in proof["findings"]:
        counts.setdefault(finding["category"], dict.fromkeys(verdicts, 0))[finding["verdict"]] += 1
        if finding["verdict"] != "contained":
            named.append(
                f"  {finding['verdict']}: {finding['attack']} as {finding['who']}: {finding['evidence']}"
            )
    lines = ["", f"attacks contained: {proof['contained']} of {proof['total']}, in {proof['seconds']:.1f} s"]
    lines.append(f"  {'':<18}" + "".join(f"{verdict:>16}" for verdict in verdicts))
    for name, count in counts.items():
        lines.append(f"  {name:<18}" + "".join(f"{count[verdict]:>16}" for verdict in verdicts))
    return lines + named


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
