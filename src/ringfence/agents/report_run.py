"""A run that ends in a directory: report, charts, and the code as a notebook.

The tools may touch one directory of this computer, made for the run: copies of the files to work on go into
it, and the notebook comes out of it.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ringfence.agents.agent import Agent, load_agent
from ringfence.agents.report import INSTRUCTIONS, Report, write_report
from ringfence.agents.running import EventHandler, RunLimits, RunResult
from ringfence.core.errors import ConfigurationError, RingfenceError

_ROOTS = "RINGFENCE_MCP_ROOTS"
NOTEBOOK = "analysis.ipynb"


@dataclass(frozen=True)
class ReportJob:
    """What to do: the agent's name, the task, the files, the model, and where the report goes."""

    agent: str
    task: str
    files: tuple[Path, ...]
    out: Path
    model: str | None = None
    base_url: str | None = None
    limits: RunLimits | None = None
    show_images: bool = True


@dataclass(frozen=True)
class ReportResult:
    """A report that was written. notebook: None when the servers gave none; `problem` says why."""

    run: RunResult
    report: Report
    notebook: Path | None
    problem: str = ""


async def run_report(
    job: ReportJob, environ: Mapping[str, str] | None = None, on_event: EventHandler | None = None
) -> ReportResult:
    """Run the agent, and write its report. When the run fails, there is still the notebook of what it did."""
    given = dict(os.environ if environ is None else environ)
    with tempfile.TemporaryDirectory(prefix="ringfence-agent-") as staging:
        async with load_agent(job.agent, environ={**given, _ROOTS: staging}) as agent:
            agent.choose_model(job.model, job.base_url)
            _check_out(job.out)
            files = _stage(job.files, Path(staging))
            try:
                run = await agent.run(
                    job.task,
                    files=files,
                    model=job.model,
                    base_url=job.base_url,
                    limits=job.limits,
                    instructions=INSTRUCTIONS,
                    show_images=job.show_images,
                    on_event=on_event,
                )
            except RingfenceError:
                await _notebook(agent, Path(staging), job.out)
                raise
            notebook, problem = await _notebook(agent, Path(staging), job.out)
            return ReportResult(run, _write(job, run, notebook), notebook, problem)


def _check_out(out: Path) -> None:
    """Before the work and not after it: whether the report can be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise ConfigurationError(f"the report cannot be written to {out}: {error.strerror}") from error


def _stage(files: Sequence[Path], staging: Path) -> list[Path]:
    """Copies in a directory that the tools may read; they cannot change the originals."""
    copies = []
    for file in files:
        if not file.is_file():
            raise ConfigurationError(f"{file} is not a file")
        if (staging / file.name).exists():
            raise ConfigurationError(f"there are several files called {file.name}")
        copies.append(Path(shutil.copyfile(file, staging / file.name)))
    return copies


async def _notebook(agent: Agent, staging: Path, out: Path) -> tuple[Path | None, str]:
    server = next(
        (name for name, grant in agent.spec.servers.items() if grant.allows("export_notebook")), None
    )
    if server is None or not agent.has_session(server):
        return None, "" if server else "the agent may not call export_notebook"
    made = staging / NOTEBOOK
    try:
        arguments = {"local_path": str(made), "overwrite": True}
        result = await agent.execute_tool(server, "export_notebook", arguments)
    except RingfenceError as error:
        return None, str(error)
    if result.is_error or not made.is_file():
        return None, result.text
    return _bring_out(made, out), ""


def _bring_out(made: Path, out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(made, out / NOTEBOOK))


def _write(job: ReportJob, run: RunResult, notebook: Path | None) -> Report:
    usage = run.usage
    parts = [
        f"Task: {job.task}",
        f"Files: {', '.join(path.name for path in job.files)}" if job.files else "",
        f"Code: [{notebook.name}]({notebook.name})" if notebook else "",
        f"Written by a language model with {usage.tool_calls} tool calls in {usage.requests} requests "
        f"({usage.input_tokens} tokens in, {usage.output_tokens} out)",
    ]
    return write_report(job.out, job.task, run.output, run.charts, "  \n".join(filter(None, parts)))
