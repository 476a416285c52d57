"""``ringfence agent``: an agent of the mapping works on a task and writes a report."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ringfence.cli.tame import tame

if TYPE_CHECKING:
    from ringfence.agents.report_run import ReportJob, ReportResult
    from ringfence.agents.running import RunEvent

_SHOWN = 300


@click.command("agent")
@click.option(
    "--file",
    "files",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Put a file into the agent's session.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="report",
    show_default=True,
    help="Directory of the report; files of an earlier one are replaced.",
)
@click.option("--model", help="The language model, as PROVIDER:NAME. Default: RINGFENCE_AGENT_MODEL.")
@click.option("--base-url", help="Where a server speaks OpenAI's protocol; MODEL is then a name there.")
@click.option("--max-requests", type=click.IntRange(1), default=50, show_default=True, help="To the model.")
@click.option("--max-tool-calls", type=click.IntRange(1), default=100, show_default=True)
@click.option("--max-tokens", type=click.IntRange(1), help="In and out, of the whole run.")
@click.option("--max-cost", type=click.FloatRange(0, min_open=True), metavar="USD", help="Of the whole run.")
@click.option("--no-images", is_flag=True, help="Send the model no pictures; for models that take none.")
@click.option("--quiet", is_flag=True, help="Do not tell what the agent does while it works.")
@click.argument("name")
@click.argument("task")
def command(
    name: str,
    task: str,
    files: tuple[Path, ...],
    out: Path,
    model: str | None,
    base_url: str | None,
    max_requests: int,
    max_tool_calls: int,
    max_tokens: int | None,
    max_cost: float | None,
    no_images: bool,
    quiet: bool,
) -> None:
    """Let the agent NAME (data_scientist, or one of your mapping) work on TASK.

    Prints the answer, and writes report.md, report.html, the charts and analysis.ipynb to --out. The code
    runs in a sandbox; the agent reaches no files of this computer but copies of those that are given.
    """
    from ringfence.agents.report_run import ReportJob
    from ringfence.agents.running import RunLimits
    from ringfence.cli.leaving import leave

    limits = RunLimits(max_requests, max_tool_calls, max_tokens, max_cost)
    job = ReportJob(name, task, files, out, model, base_url, limits, show_images=not no_images)
    try:
        result = asyncio.run(_run(job, quiet))
    except KeyboardInterrupt:
        leave(128 + signal.SIGINT)
    except asyncio.CancelledError:
        leave(128 + signal.SIGTERM)
    _finish(result)


async def _run(job: "ReportJob", quiet: bool) -> "ReportResult":
    from ringfence.agents.report_run import run_report

    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run_report(job, on_event=None if quiet else _tell)


def _tell(event: "RunEvent") -> None:
    if event.kind == "text":
        return
    if event.kind == "call":
        said = str(event.arguments.get("code") or event.arguments.get("command") or dict(event.arguments))
        line = f"{event.tool}\n{said}"
    else:
        line = event.text
    shown = line if event.kind == "call" or len(line) <= _SHOWN else f"{line[:_SHOWN]} …"
    mark = {"call": "▶", "failure": "✗"}.get(event.kind, " ")
    print(f"{mark} " + tame(shown).strip().replace("\n", "\n  "), file=sys.stderr, flush=True)


def _finish(result: "ReportResult") -> None:
    print(tame(result.run.output))
    usage = result.run.usage
    print(
        f"\n{usage.requests} requests, {usage.tool_calls} tool calls, {usage.input_tokens} tokens in, "
        f"{usage.output_tokens} out\nreport: {result.report.html}",
        file=sys.stderr,
    )
    if result.notebook is not None:
        print(f"code: {result.notebook}", file=sys.stderr)
    elif result.problem:
        print(f"there is no notebook: {result.problem}", file=sys.stderr)
