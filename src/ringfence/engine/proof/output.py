"""Attacks by output: forged answers, floods, rubbish on the kernel's own channel. The host is the judge."""

from typing import Any

from ringfence.engine.model import Sandbox
from ringfence.engine.proof.guest_client import GuestAnswerError, run_cell, run_program
from ringfence.engine.proof.model import Finding

_FORGED = '{"type": "result", "text": "forged", "is_main_result": true}'
_FORGERY = f"""
import sys
for end in ("\\n", "\\u2028", "\\x85", "\\r", "\\v"):
    sys.stdout.write(end + {_FORGED!r} + end + '{{"type": "end_of_execution"}}' + end)
6 * 7
"""
_RUBBISH = """
import os, stat
for name in os.listdir("/proc/self/fd"):
    try:
        if int(name) > 2 and stat.S_ISSOCK(os.fstat(int(name)).st_mode):
            os.set_blocking(int(name), False)
            os.write(int(name), b'\\xff\\xfe{"op": "exited"' + b"[" * 100000 + b"\\n")
    except OSError:
        pass
"""
_FLOOD = "import os\nwhile True: os.write(1, b'x' * 65536)"


async def run(sandbox: Sandbox, token: str, *, everything: bool) -> list[Finding]:
    """The essential attack by output, or every one."""
    findings = [await _forged(sandbox, token)]
    if everything:
        findings += [await _flooded(sandbox, token), await _rubbish(sandbox, token)]
    return findings


def _finding(attack: str, category: str, layer: str, problem: str, evidence: str) -> Finding:
    return Finding(
        attack, category, layer, "host", "got through" if problem else "contained", problem or evidence
    )


def _results(events: list[dict[str, Any]]) -> list[str | None]:
    return [event.get("text") for event in events if event.get("type") == "result"]


async def _forged(sandbox: Sandbox, token: str) -> Finding:
    name, category, layer = "output-is-taken-for-a-result", "output", "output apart from results"
    try:
        events = await run_cell(sandbox, token, _FORGERY)
    except GuestAnswerError as error:
        return _finding(name, category, layer, f"not proven: {error}", "")
    results, ends = _results(events), [event for event in events if event.get("type") == "end_of_execution"]
    problem = "" if results == ["42"] and len(ends) == 1 else f"results {results}, {len(ends)} ends"
    return _finding(name, category, layer, problem, "forged events arrived as text")


async def _flooded(sandbox: Sandbox, token: str) -> Finding:
    name, category, layer = "a-flood-of-output", "output", "bounded streams"
    try:
        received = 0
        async for data in run_program(sandbox, token, "user", ["-I", "-c", _FLOOD]):
            received += len(data)
        events = await run_cell(sandbox, token, "1 + 1")
    except GuestAnswerError as error:
        return _finding(name, category, layer, f"after a flood the guest did not answer: {error}", "")
    problem = "" if _results(events) == ["2"] else f"after a flood a cell gave {_results(events)}"
    return _finding(
        name, category, layer, problem, f"the reader left after {received >> 20} MiB, the guest serves"
    )


async def _rubbish(sandbox: Sandbox, token: str) -> Finding:
    name, category, layer = "rubbish-on-the-kernels-channel", "control channel", "bounded, checked messages"
    try:
        await run_cell(sandbox, token, _RUBBISH)
        events = await run_cell(sandbox, token, "1 + 1")
    except GuestAnswerError as error:
        return _finding(name, category, layer, f"the guest did not survive it: {error}", "")
    problem = "" if _results(events) == ["2"] else f"afterwards a cell gave {_results(events)}"
    return _finding(name, category, layer, problem, "the next cell works")
