"""What the examples of this directory share: the task, the model's name, how the server is started."""

import os
import shutil
import sys
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[2]
DATA = _REPOSITORY / "examples" / "data" / "penguins.csv"
OUT = Path(os.environ.get("EXAMPLE_OUT", _REPOSITORY / "out")).resolve()
CHART = OUT / "body_mass.png"

TASK = (
    f"Which of the penguin species in {DATA} is the heaviest, and by how much? Upload the file, look at it, "
    f"compute the mean body mass of each species, and draw a bar chart. Save the chart as {CHART}."
)
"""For agents with the tools of ``python_executor``: the file is uploaded and the chart fetched with them."""

MODEL = os.environ.get("MODEL", "gpt-5")
"""Any model that the framework's OpenAI client can reach with ``OPENAI_API_KEY`` and ``OPENAI_BASE_URL``."""


def server_command() -> list[str]:
    """The command that starts the MCP server: the installed program, or the one of this clone."""
    program = shutil.which("ringfence") or str(_REPOSITORY / ".venv" / "bin" / "ringfence")
    if not Path(program).exists():
        sys.exit("There is no program `ringfence`: run `make test` in this clone, or install the package.")
    return [program, "mcp"]


def server_environment() -> dict[str, str]:
    """The server's variables: settings that choose the backend, and the directories tools may use."""
    OUT.mkdir(parents=True, exist_ok=True)
    names = ("PATH", "HOME", "TMPDIR", "XDG_CACHE_HOME")
    passed = {name: os.environ[name] for name in names if name in os.environ}
    chosen = {name: value for name, value in os.environ.items() if name.startswith(("E2B_", "RINGFENCE_"))}
    return {**passed, **chosen, "RINGFENCE_MCP_ROOTS": f"{DATA.parent}{os.pathsep}{OUT}"}


def report(answer: object) -> None:
    """Print what the agent answered, and where the chart is."""
    print(answer)
    print(f"\nchart: {CHART} ({CHART.stat().st_size:,} bytes)" if CHART.exists() else "\nThere is no chart.")
