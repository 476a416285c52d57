"""Registers attacks, and runs them in children, so that one that dies or hangs takes nothing along.

An attack returns its evidence when it was contained and raises `GotThrough` or `NotApplicable` otherwise. Any
other exception is a mistake in the attack and counts as got through, because nothing was proven.
"""

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

Facts = dict[str, Any]
"""What the host tells the attacks: paths, ports and pids of things that they must not reach."""
Attack = Callable[[Facts], str]

CONTAINED = "contained"
GOT_THROUGH = "got through"
NOT_APPLICABLE = "not applicable"
EVERYONE = frozenset({"user", "root", "kernel"})
_MAX_EVIDENCE = 300


class GotThrough(Exception):  # noqa: N818 - it is a verdict
    """The attack succeeded; the message is the evidence."""


class NotApplicable(Exception):  # noqa: N818 - it is a verdict
    """There is nothing to attack here; the message says why."""


@dataclass(frozen=True)
class Registered:
    """One attack: its name, what it attacks (`category`), what should hold it (`layer`), who may run it.

    seconds: after this long it counts as hung, and is killed. apart: it needs a process of its own.
    """

    name: str
    category: str
    layer: str
    run: Attack
    essential: bool
    who: frozenset[str]
    seconds: float
    apart: bool


ATTACKS: dict[str, Registered] = {}


def attack(
    category: str,
    layer: str,
    *,
    essential: bool = True,
    who: Collection[str] = EVERYONE,
    seconds: float = 5,
    apart: bool = False,
) -> Callable[[Attack], Attack]:
    """Register the decorated function; its name with dashes is the attack's name."""

    def register(function: Attack) -> Attack:
        name = function.__name__.replace("_", "-")
        ATTACKS[name] = Registered(name, category, layer, function, essential, frozenset(who), seconds, apart)
        return function

    return register


def judge(one: Registered, facts: Facts) -> tuple[str, str]:
    """Run an attack in this process; its verdict and evidence."""
    try:
        return CONTAINED, one.run(facts)
    except GotThrough as proof:
        return GOT_THROUGH, str(proof)
    except NotApplicable as why:
        return NOT_APPLICABLE, str(why)
    except BaseException as error:
        return GOT_THROUGH, f"not proven: {type(error).__name__}: {error}"


def run(batch: Collection[Registered], facts: Facts) -> Iterator[tuple[Registered, str, str]]:
    """Run attacks one after the other in a child; a new child goes on where one has died or hung."""
    rest = list(batch)
    while rest:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            _run_in_child(rest, facts, writer)
        os.close(writer)
        answers = _Answers(reader)
        while rest:
            answer, hung = answers.next(rest[0].seconds)
            if answer is None:
                break
            yield rest.pop(0), answer[0], answer[1]
        os.close(reader)
        _kill_group(pid)
        _, status = os.waitpid(pid, 0)
        if rest:
            verdict, evidence = _silent(status, hung)
            yield rest.pop(0), verdict, evidence


def _run_in_child(batch: Collection[Registered], facts: Facts, writer: int) -> NoReturn:
    try:
        os.setsid()
        for one in batch:
            verdict, evidence = judge(one, facts)
            os.write(writer, json.dumps([verdict, evidence[:_MAX_EVIDENCE]]).encode() + b"\n")
    finally:
        os._exit(0)


class _Answers:
    """Lines of a pipe, each with a deadline."""

    def __init__(self, reader: int) -> None:
        self._reader = reader
        self._buffer = b""

    def next(self, seconds: float) -> tuple[list[str] | None, bool]:
        """The next answer; None at the end, and whether it was the deadline that ended it."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._reader], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._reader, 65536) if ready else b""
            if not data:
                return None, not ready
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line), False


def _silent(status: int, hung: bool) -> tuple[str, str]:
    if hung:
        return GOT_THROUGH, "not proven: it hung"
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSYS:
        return CONTAINED, "killed by SIGSYS"
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return CONTAINED, "killed by the kernel (out of memory)"
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGSEGV, signal.SIGILL):
        return CONTAINED, "the processor refused it"
    return GOT_THROUGH, f"not proven: it ended with status {status}"


def _kill_group(pid: int) -> None:
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except OSError:
            continue


def main(who: str, names: Collection[str], facts: Facts) -> None:
    """Run the named attacks that `who` may run; one line of JSON for each on standard output."""
    chosen = [one for one in ATTACKS.values() if one.name in names and who in one.who]
    together = [one for one in chosen if not one.apart]
    for batch in (together, *([one] for one in chosen if one.apart)):
        for one, verdict, evidence in run(batch, facts):
            line = {"attack": one.name, "verdict": verdict, "evidence": evidence}
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()  # the next one may end the sandbox
