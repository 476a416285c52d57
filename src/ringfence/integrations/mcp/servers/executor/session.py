"""A session: a sandbox, its Python state, and the unguessable handle by which a client names it."""

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from e2b_code_interpreter import AsyncSandbox

from ringfence.integrations.backend import Backend
from ringfence.integrations.mcp.servers.executor.filewatch import FileWatch
from ringfence.integrations.mcp.servers.executor.jobs import Job
from ringfence.integrations.mcp.servers.executor.journal import Journal
from ringfence.integrations.mcp.servers.executor.usage import Usage

_JOBS_KEPT = 20


@dataclass
class Session:
    """One sandbox and what is known of it.

    lock: held by what runs in the session; one thing at a time.
    last_count: the kernel's number of the last cell.
    restarted: Python was restarted and the model may not have noticed; used for hints until names work again.
    news: a sentence for the next result (why this session is a new one).
    expires: monotonic time at which the sandbox's lease ends, as far as is known here.
    journal: what was done in it. usage: what it has used.
    backend: where its sandbox is. placed: why there, when a policy had the choice.
    """

    handle: str
    sandbox: AsyncSandbox
    backend: Backend
    created: float = field(default_factory=time.time)
    used: float = field(default_factory=time.time)
    renewed: float = field(default_factory=time.monotonic)
    seen: float = field(default_factory=time.monotonic)
    expires: float = float("inf")
    journal: Journal = field(default_factory=Journal)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    watch: FileWatch = field(default_factory=FileWatch)
    last_count: int = 0
    restarted: bool = False
    news: str = ""
    usage: Usage = field(default_factory=Usage)
    placed: str = ""
    jobs: "OrderedDict[str, Job]" = field(default_factory=OrderedDict)

    def remember(self, job: Job) -> None:
        """Keep the job, so that it can be asked for; the oldest finished ones are forgotten."""
        self.jobs[job.cell.execution_id] = job
        for execution_id, old in list(self.jobs.items()):
            if len(self.jobs) > _JOBS_KEPT and old.done():
                del self.jobs[execution_id]

    def running(self) -> list[Job]:
        """The jobs that have not ended."""
        return [job for job in self.jobs.values() if not job.done()]


@dataclass(frozen=True)
class Loss:
    """A session whose sandbox is gone: why, and what it takes to make it again.

    session: what is left of it, its executions' results above all; None when another process had it.
    """

    handle: str
    why: str
    journal: Journal
    session: Session | None = None

    def describe(self) -> str:
        """What a client that names the session is told."""
        lost = f"variables and files are gone (it had {self.journal.summary()})"
        return f"This session has ended: {self.why}; its {lost}. {self.remedy()}"

    def remedy(self) -> str:
        """How to go on."""
        return (
            f'execute_code with session_id={self.handle} and on_loss="replay" rebuilds it by doing all of it '
            "again; create_session makes an empty one."
        )
