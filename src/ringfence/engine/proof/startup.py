"""The proof at the start of a server: the essential attacks, or what an earlier start found out.

A result without breaches is kept in the cache directory, by kernel, version, privilege, layers in force and
template. One with breaches is not: the next start looks again.
"""

import contextlib
import hashlib
import json
import os
import platform
import tempfile
from pathlib import Path

from ringfence import __version__
from ringfence.core.errors import IsolationError, RingfenceError
from ringfence.engine.engine import Engine
from ringfence.engine.isolation_report import LEVELS, Breach, IsolationReport, Proof
from ringfence.engine.own_code import own_code
from ringfence.engine.proof.battery import run_probes
from ringfence.engine.proof.model import ProofReport

_PREFERRED = "base"
_DIRECTORY = "proofs"


async def prove(engine: Engine, cache_dir: Path) -> IsolationReport:
    """Attack a sandbox of the engine, unless a start like this one has; the engine keeps the report.

    Raises IsolationError when no attack could be made.
    """
    if not engine.templates:
        return engine.isolation
    name = _PREFERRED if _PREFERRED in engine.templates else next(iter(engine.templates))
    path = cache_dir / _DIRECTORY / f"{_key(engine, name)}.json"
    report = _read(path)
    if report is None:
        try:
            report = await run_probes(engine, name)
        except (RingfenceError, OSError, TimeoutError) as error:
            raise IsolationError(
                f"isolation could not be put to the test: {error or 'it took too long'}"
            ) from error
        if not report.got_through:
            _write(path, report)
    engine.isolation = engine.isolation.with_proof(as_proof(report))
    return engine.isolation


def as_proof(report: ProofReport) -> Proof:
    """The short form of a report."""
    breaches = tuple(
        Breach(f"{finding.attack} as {finding.who}", finding.category, finding.evidence)
        for finding in report.got_through
    )
    total = sum(finding.verdict != "not applicable" for finding in report.findings)
    return Proof(total - len(breaches), total, breaches, report.cached)


def require_level(report: IsolationReport, wanted: str) -> None:
    """Raises IsolationError when less than `wanted` is in force."""
    if LEVELS.index(report.level) < max(LEVELS.index(wanted), LEVELS.index("best-effort")):
        raise IsolationError(
            f"isolation level {wanted} was asked for, but {report.level} is in force: {report.shortfall()}"
        )


def _key(engine: Engine, name: str) -> str:
    template = engine.templates[name]
    parts = [
        __version__, platform.release(), platform.version(), platform.machine(), os.geteuid() == 0,
        template.template_id, template.python_version, engine.isolation.as_dict()["layers"], own_code(),
    ]  # fmt: skip
    if engine.isolation.tier != "process":  # another kernel, whose program may be another tomorrow
        parts += [engine.isolation.tier, engine.isolation.gvisor]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _read(path: Path) -> ProofReport | None:
    try:
        return ProofReport.from_dict(json.loads(path.read_text()), cached=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, report: ProofReport) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(descriptor, "w") as file:
            json.dump(report.as_dict(), file)
        Path(name).replace(path)
