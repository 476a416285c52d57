"""The command line. Each command's module is imported when the command runs, so that starting is quick."""

import importlib
import io
import sys

import click

from ringfence import __version__
from ringfence.core.errors import RingfenceError

# name: (module, what the list of commands says)
_COMMANDS = {
    "run": ("ringfence.cli.run", "Run a script in a fresh sandbox."),
    "mcp": ("ringfence.cli.mcp", "Serve the python_executor MCP server on standard input and output."),
    "agent": ("ringfence.cli.agent", "Let an agent work on a task, and write a report."),
    "serve": ("ringfence.cli.serve", "Run a server that speaks E2B's protocol."),
    "ps": ("ringfence.cli.ps", "List the sandboxes of a server."),
    "logs": ("ringfence.cli.logs", "Print the log of a sandbox, with what it was refused."),
    "kill": ("ringfence.cli.kill", "End sandboxes of a server."),
    "doctor": ("ringfence.cli.doctor", "Say which backend is used, whether it works, and how it isolates."),
    "template": ("ringfence.cli.template", "List and build templates."),
    "version": ("ringfence.cli.version", "Print the version."),
}


class _Commands(click.Group):
    """A group whose commands are modules with a click command called `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(_COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ringfence")
def cli() -> None:
    """Run code written by AI agents, safely, in sandboxes on this machine or elsewhere."""


def main() -> None:
    """Entry point of ``ringfence``; errors that Ringfence raises on purpose become one line and status 1."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # where the terminal cannot show a character
    try:
        cli(prog_name="ringfence")
    except RingfenceError as error:
        print(f"ringfence: {error}", file=sys.stderr)
        sys.exit(1)
