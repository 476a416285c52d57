"""One sandbox as the server knows it, and how it is shown on the wire."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ringfence.engine.model import Sandbox, Stats, VolumeMount
from ringfence.server.models import NewSandbox

ENVD_VERSION = "0.6.13"
"""The envd generation whose behaviour the guest has; SDKs choose features by it."""

CLIENT_ID = "ringfence"
_LOG_LINES = 500
_SAMPLES = 720


@dataclass(frozen=True)
class LogLine:
    """An event in the life of a sandbox. `at` is in seconds since the epoch."""

    at: float
    level: str
    message: str


@dataclass(frozen=True)
class Sample:
    """The use of a sandbox at one time: `at` in epoch seconds; one busy processor is 100 `cpu_percent`."""

    at: float
    cpu_percent: float
    stats: Stats


@dataclass
class Record:
    """A live sandbox and what its creator asked for. Times are seconds since the epoch.

    access_token: what envd inside asks for. traffic_token: what the proxy asks for on user ports.
    lifetime: seconds it was created for. request: what it was created by. snapshots: what it was started
    from, topmost first. volumes: what is mounted, under the names in `request`. pause_mode: ``full`` or
    ``filesystem`` while it is paused. lock: held by whoever changes that. network_lock:
    held by whoever changes what it may reach, so that what is shown and what is in force stay the same.
    """

    sandbox: Sandbox
    owner: str
    started_at: float
    end_at: float
    metadata: dict[str, str]
    access_token: str | None = None
    traffic_token: str | None = None
    allow_internet_access: bool | None = None
    network: dict[str, Any] = field(default_factory=dict)
    mask_request_host: str | None = None
    lifetime: int = 0
    request: NewSandbox | None = None
    snapshots: tuple[str, ...] = ()
    volumes: tuple[VolumeMount, ...] = ()
    shown_template: tuple[str, str | None] | None = None
    pause_mode: str | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    network_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    log: deque[LogLine] = field(default_factory=lambda: deque(maxlen=_LOG_LINES))
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=_SAMPLES))

    @property
    def sandbox_id(self) -> str:
        return self.sandbox.sandbox_id

    @property
    def paused(self) -> bool:
        """Whether it is paused, or about to be."""
        return self.pause_mode is not None

    @property
    def auto_pause(self) -> bool:
        """Whether the end of its lease pauses it, instead of ending it."""
        return bool(self.request and self.request.auto_pause)

    @property
    def auto_pause_memory(self) -> bool:
        """Whether such a pause keeps its memory."""
        return not self.request or self.request.auto_pause_memory is not False

    @property
    def auto_resume(self) -> bool:
        """Whether traffic resumes it."""
        return bool(self.request and self.request.auto_resume and self.request.auto_resume.enabled)

    @property
    def template_names(self) -> dict[str, str]:
        """What it was started from, as the wire has it."""
        template = self.sandbox.template
        shown, alias = self.shown_template or (template.template_id, template.name)
        return {"templateID": shown, **({"alias": alias} if alias else {})}

    @property
    def volume_mounts(self) -> list[dict[str, str]]:
        """The volumes that it has mounted, as the wire has them."""
        mounts = (self.request.volume_mounts if self.request else None) or []
        return [{"name": mount.name, "path": mount.path} for mount in mounts]

    def as_created(self, domain: str) -> dict[str, Any]:
        """The answer to create and connect (``Sandbox`` in E2B's OpenAPI)."""
        body: dict[str, Any] = {
            **self.template_names,
            "sandboxID": self.sandbox_id,
            "clientID": CLIENT_ID,
            "envdVersion": ENVD_VERSION,
            "domain": domain,
        }
        if self.access_token is not None:
            body["envdAccessToken"] = self.access_token
        if self.traffic_token is not None:
            body["trafficAccessToken"] = self.traffic_token
        return body

    def as_listed(self) -> dict[str, Any]:
        """One element of a list (``ListedSandbox``)."""
        limits = self.sandbox.limits
        return {
            **self.template_names,
            "sandboxID": self.sandbox_id,
            "clientID": CLIENT_ID,
            "startedAt": timestamp(self.started_at),
            "endAt": timestamp(self.end_at),
            "cpuCount": whole_cpus(limits.cpus),
            "memoryMB": limits.memory_mb,
            "diskSizeMB": limits.disk_mb,
            "state": "paused" if self.paused else "running",
            "envdVersion": ENVD_VERSION,
            "metadata": self.metadata,
            "volumeMounts": self.volume_mounts,
            "isolation": self.sandbox.isolation,
        }

    def as_detail(self, domain: str) -> dict[str, Any]:
        """The answer to info (``SandboxDetail``)."""
        body = self.as_listed()
        body["domain"] = domain
        if self.sandbox.isolation == "gvisor":
            body["restored"] = self.sandbox.restored
        body["allowInternetAccess"] = self.allow_internet_access
        on_timeout = "pause" if self.auto_pause else "kill"
        body["lifecycle"] = {"autoResume": self.auto_resume, "onTimeout": on_timeout}
        if self.pause_mode is not None:
            body["pauseMode"] = self.pause_mode
        if self.network:
            body["network"] = self.network
        if self.access_token is not None:
            body["envdAccessToken"] = self.access_token
        return body


def timestamp(seconds: float) -> str:
    """A time as the wire has it: RFC 3339 in UTC with microseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def whole_cpus(cpus: float) -> int:
    """Processors as the wire has them: a whole number, at least one."""
    return max(1, round(cpus))


def metric(record: Record, sample: Sample) -> dict[str, Any]:
    """One point of a sandbox's metrics (``SandboxMetric``). Memory and disk in bytes, processor time in
    percent of all its processors, as envd inside counts it.
    """
    limits = record.sandbox.limits
    return {
        "timestamp": timestamp(sample.at),
        "timestampUnix": int(sample.at),
        "cpuCount": whole_cpus(limits.cpus),
        "cpuUsedPct": round(sample.cpu_percent / whole_cpus(limits.cpus), 2),
        "memUsed": sample.stats.memory_used,
        "memTotal": sample.stats.memory_limit,
        "memCache": sample.stats.memory_cache,
        "diskUsed": sample.stats.disk_used,
        "diskTotal": sample.stats.disk_limit or limits.disk_mb * 1024 * 1024,
    }
