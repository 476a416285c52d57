"""An event for every tool call of an agent: who called what, and how it ended. Arguments only as a digest."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

_log = logging.getLogger("ringfence.audit")


@dataclass(frozen=True)
class AuditEvent:
    """One call. `timestamp` in seconds since the epoch; `arguments_sha256` over canonical JSON.

    usage: what the server says the call used (`python_executor`: backend, wall_s, output_chars, and of the
    session so far). trace_id: of the OpenTelemetry trace it is part of; empty without one.
    """

    agent: str
    agent_id: str
    server: str
    tool: str
    arguments_sha256: str
    outcome: Literal["ok", "error", "denied", "exception"]
    duration_s: float
    detail: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)
    trace_id: str = ""
    timestamp: float = field(default_factory=time.time)


AuditSink = Callable[[AuditEvent], None]


def log_event(event: AuditEvent) -> None:
    """The sink that is used when none is given: one line of JSON on the logger ``ringfence.audit``."""
    _log.info("%s", json.dumps(asdict(event)))


def digest(arguments: Mapping[str, Any]) -> str:
    """SHA-256 of the arguments, in hex."""
    canonical = json.dumps(arguments, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def current_trace() -> str:
    """The id of the OpenTelemetry trace that is going on, in hex; empty when there is none."""
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


def deliver(sink: AuditSink, event: AuditEvent) -> None:
    """Give `event` to `sink`. A sink that fails is logged; it never fails the call."""
    try:
        sink(event)
    except Exception:  # the sink is somebody else's code
        _log.exception("an audit event could not be delivered")
