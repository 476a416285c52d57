"""Runs the attacks in a throw-away sandbox, and looks from the host at what they have done."""

import asyncio
import contextlib
import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, replace
from typing import Any, Literal

from ringfence.core.errors import RingfenceError
from ringfence.core.ids import new_sandbox_id
from ringfence.engine.engine import Engine
from ringfence.engine.isolation import devices
from ringfence.engine.model import Limits, NetworkRules, Sandbox, SandboxSpec
from ringfence.engine.proof import ending, output, outside, own_kernel, program
from ringfence.engine.proof.guest_client import GuestAnswerError, run_cell, run_program
from ringfence.engine.proof.model import Finding, ProofReport
from ringfence.engine.proof.surroundings import DENIED, Surroundings, surroundings

Which = Literal["essential", "all"]
_LIMITS = Limits(memory_mb=320, cpus=1.0, pids=96, disk_mb=64, inodes=4000, open_files=512)
"""Small, so that what fills them is done soon."""
_SECONDS = {"essential": 20, "all": 180}
_GVISOR_MEMORY_MB = 2048
_GVISOR_PATIENCE = 5
"""gVisor needs memory of its own, and is slower."""
_RULES = NetworkRules(deny=(DENIED,))
_CGROUPS = "cgroup"
_PARTIES = ("user", "root", "kernel")
_NO_ANSWER = "not proven: it gave no answer: "


@dataclass(frozen=True)
class _Run:
    """One sandbox under attack."""

    engine: Engine
    sandbox: Sandbox
    token: str
    facts: dict[str, Any]


async def run_probes(
    engine: Engine, template: str, which: Which = "essential", canary: str = ""
) -> ProofReport:
    """Attack a sandbox of `template` with the essential attacks, or all of them, and report what happened.

    canary: a word of letters and digits that this process's environment held when the engine was started;
    the kernel's memory is searched for it. An attack that cannot be run counts as got through, because
    nothing was proven. Raises what `Engine.create` raises.
    """
    started = time.monotonic()
    with surroundings(engine.templates[template]) as around:
        patience = _GVISOR_PATIENCE if _in_gvisor(engine, template) else 1
        async with asyncio.timeout(_SECONDS[which] * patience):
            findings = await _attack_and_look(engine, template, which, around, canary)
        findings += [
            Finding(name.replace(" ", "-"), "files", "everything", "host", "got through", evidence)
            for name, evidence in around.traces().items()
        ]
    if not any(finding.layer == "everything" for finding in findings):
        evidence = (
            f"the host's file, process and sockets and {len(around.digests)} template files are as before"
        )
        findings.append(Finding("the-host-was-changed", "files", "everything", "host", "contained", evidence))
    return ProofReport(which, template, tuple(findings), round(time.monotonic() - started, 3))


async def _attack_and_look(
    engine: Engine, template: str, which: Which, around: Surroundings, canary: str
) -> list[Finding]:
    limits = _small_limits(engine, template, which)
    async with _sandbox(engine, template, limits) as (sandbox, token):
        private = [str(sandbox.http_socket.parent.parent), *_cache_paths(sandbox)]
        facts = {**around.facts(limits, private, canary), "own_devices": _in_force(engine, devices.LAYER)}
        run = _Run(engine, sandbox, token, facts)
        if which == "all":
            findings = await _attack_with_neighbour(run, template)
        else:
            findings = await _attack(run, which)
        findings += await output.run(run.sandbox, run.token, everything=which == "all")
        seen = outside.examine(sandbox, os.geteuid() == 0, _has_cgroups(engine))
        processes = outside.family(sandbox.pid)
    findings += [outside.leftovers(sandbox, processes)]
    if sandbox.isolation == "gvisor" and which == "all":
        findings += await _attack_alone(run, template)
    if own_kernel.proven(seen):
        findings = [own_kernel.judged(finding) for finding in findings]
    return findings + seen


async def _attack_alone(run: _Run, template: str) -> list[Finding]:
    """The attacks that may end their sandbox; such an end is judged too."""
    ends = ending.Ends.of(run.engine)
    findings = []
    for name, who in ending.MAY_END:
        async with _sandbox(run.engine, template, run.sandbox.limits) as (sandbox, token):
            processes = outside.family(sandbox.pid)
            before, started = await run.engine.stats(sandbox.sandbox_id), time.monotonic()
            [finding] = await _attack_as(replace(run, sandbox=sandbox, token=token), who, [name])
            if (name, who) == ending.OVERUSE:
                after, seconds = await run.engine.stats(sandbox.sandbox_id), time.monotonic() - started
                used = after.cpu_seconds - before.cpu_seconds
                finding = ending.use_judged(finding, used, seconds, sandbox.limits.cpus)
            if finding.evidence.startswith(_NO_ANSWER):
                end = await ends.wait(sandbox.sandbox_id)
                finding = ending.judged(finding, end, outside.leftovers(sandbox, processes))
        findings.append(finding)
    return findings


def _cache_paths(sandbox: Sandbox) -> list[str]:
    lowers = [path for layer in sandbox.template.layers for path in layer.lowers]
    return sorted({str(path) for path in lowers if len(path.parts) > 3 and path.parts[1] != "usr"})


def _small_limits(engine: Engine, template: str, which: str) -> Limits:
    ceiling = engine.ceiling
    if _in_gvisor(engine, template):
        cpus = 4.0 if which == "essential" else _LIMITS.cpus
        return replace(_LIMITS, cpus=min(cpus, ceiling.cpus), memory_mb=_GVISOR_MEMORY_MB)
    wanted = replace(_LIMITS, cpus=4.0) if which == "essential" else _LIMITS  # nothing is measured: be quick
    return Limits(**{name: min(value, getattr(ceiling, name)) for name, value in vars(wanted).items()})


def _in_gvisor(engine: Engine, template: str) -> bool:
    return engine.least_isolation(engine.templates[template]) == "gvisor"


def _has_cgroups(engine: Engine) -> bool:
    return _in_force(engine, _CGROUPS)


def _in_force(engine: Engine, name: str) -> bool:
    return any(layer.in_force for layer in engine.isolation.layers if layer.name.startswith(name))


@contextlib.asynccontextmanager
async def _sandbox(engine: Engine, template: str, limits: Limits) -> AsyncIterator[tuple[Sandbox, str]]:
    token = secrets.token_hex(16)
    spec = SandboxSpec(new_sandbox_id(), template, access_token=token, limits=limits, network=_RULES)
    sandbox = await engine.create(spec)
    try:
        yield sandbox, token
    finally:
        await engine.kill(sandbox.sandbox_id)


async def _attack_with_neighbour(run: _Run, template: str) -> list[Finding]:
    limits = run.sandbox.limits
    async with _sandbox(run.engine, template, limits) as (other, token):
        facts = {**run.facts, "neighbour_pid": other.pid}
        victim = run_program(other, token, "user", ["-I", "-c", program.neighbour(facts)])
        async with contextlib.aclosing(victim):
            ready = await anext(victim)
            if b"ready" not in ready:
                raise GuestAnswerError(f"the neighbour did not get ready: {ready[:500]!r}")
            return await _attack(replace(run, facts=facts), "all")


async def _attack(run: _Run, which: Which) -> list[Finding]:
    names = [one.name for one in program.ATTACKS.values() if which == "all" or one.essential]
    if which == "all":  # one after the other: what fills a limit would disturb the others
        return [finding for who in _PARTIES for finding in await _attack_among_others(run, who, names)]
    parties = [_attack_among_others(run, who, names) for who in ("root", "kernel")]  # a kernel is the user's
    return [finding for findings in await asyncio.gather(*parties) for finding in findings]


async def _attack_among_others(run: _Run, who: str, names: Collection[str]) -> list[Finding]:
    if run.sandbox.isolation == "gvisor":
        names = ending.without(names, who)
    return await _attack_as(run, who, names)


async def _attack_as(run: _Run, who: str, names: Collection[str]) -> list[Finding]:
    text = program.attacks(who, names, run.facts)
    trouble = "no answer"
    collected = b""
    try:
        if who == "kernel":
            events = await run_cell(run.sandbox, run.token, text)
            collected = "".join(event["text"] for event in events if event.get("type") == "stdout").encode()
            trouble = str([event for event in events if event.get("type") in ("error", "stderr")])[:300]
        else:
            async for data in run_program(run.sandbox, run.token, who, ["-I", "-c", text]):
                collected += data
            trouble = collected[-300:].decode(errors="replace")
    except (GuestAnswerError, RingfenceError) as error:
        trouble = str(error)
    return _read(collected, who, names, trouble)


def _read(collected: bytes, who: str, names: Collection[str], trouble: str) -> list[Finding]:
    answers: dict[str, tuple[str, str]] = {}
    for line in collected.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            answer = json.loads(line)
            answers[answer["attack"]] = (answer["verdict"], answer["evidence"])
    findings = []
    for one in program.ATTACKS.values():
        if one.name in names and who in one.who:
            verdict, evidence = answers.get(one.name, ("got through", f"{_NO_ANSWER}{trouble}"))
            findings.append(Finding(one.name, one.category, one.layer, who, verdict, evidence))  # type: ignore[arg-type]
    return findings
