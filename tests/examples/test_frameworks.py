"""The examples of other frameworks, as typed, in environments of their own; only the model is scripted."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import uv

from ringfence.engine.templates.indexes import uv_environment

EXAMPLES = Path(__file__).parents[2] / "examples"
FRAMEWORKS = EXAMPLES / "frameworks"
PROGRAMS = Path(sys.executable).parent
OFFLINE = [sys.executable, str(FRAMEWORKS / "offline.py")]
ANSWER = "heaviest: Gentoo, 5076 g on average, 1343 g more than the next"


def uv_run(name: str) -> list[str]:
    """The command that runs an example in an environment of its own, which is made first."""
    script = str(FRAMEWORKS / name)
    install("sync", "--script", script)
    return [uv.find_uv_bin(), "run", "--quiet", "--offline", "--python", sys.executable, "--script", script]


def install(*arguments: str) -> str:
    """Let uv do this; where it reaches no index the test is skipped."""
    command = [uv.find_uv_bin(), arguments[0], "--quiet", "--python", sys.executable, *arguments[1:]]
    done = subprocess.run(command, env=environ(), capture_output=True, text=True)
    if done.returncode:
        reason = f"its packages cannot be installed: {done.stderr.strip()[-300:]}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return done.stdout.strip()


def environ(**own: str) -> dict[str, str]:
    programs = f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"
    return {**uv_environment(os.environ, Path.home()), "PATH": programs, **own}


def run(command: list[str], out: Path, **environment: str) -> None:
    done = subprocess.run(
        [*OFFLINE, *command],
        env=environ(EXAMPLE_OUT=str(out), **environment),
        cwd=out,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert ANSWER in done.stdout, done.stdout + done.stderr
    assert (out / "body_mass.png").read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.timeout(600)  # the first time their packages are fetched
@pytest.mark.parametrize(
    "name",
    [
        "pydantic_ai_agent.py",
        "openai_agents_agent.py",
        pytest.param("langchain_agent.py", marks=pytest.mark.frameworks),
        pytest.param("smolagents_mcp.py", marks=pytest.mark.frameworks),
    ],
)
def test_an_agent_with_the_tools_of_the_mcp_server(server: Any, tmp_path: Path, name: str) -> None:
    run(uv_run(name), tmp_path, RINGFENCE_URL=server.url, RINGFENCE_API_KEY=server.key)


@pytest.mark.frameworks
@pytest.mark.timeout(600)
def test_a_code_agent_with_its_own_e2b_executor(server: Any, tmp_path: Path) -> None:
    there = {"E2B_API_KEY": server.key, "E2B_API_URL": server.url, "E2B_SANDBOX_URL": server.url}
    run(uv_run("smolagents_e2b.py"), tmp_path, **there)


@pytest.mark.frameworks
@pytest.mark.timeout(600)
def test_claude_code_with_the_projects_configuration(
    server: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    find = "import claude_agent_sdk, os; print(os.path.dirname(claude_agent_sdk.__file__))"
    package = install("run", "--no-project", "--with", "claude-agent-sdk", "python", "-c", find)
    shutil.copy(EXAMPLES / ".mcp.json", tmp_path)
    shutil.copy(EXAMPLES / "data" / "penguins.csv", tmp_path)
    # The project's directory is open to the tools, unless it is the user's home or above it.
    home = tmp_path_factory.mktemp("home")
    task = f"Which species in {tmp_path}/penguins.csv is the heaviest? Draw {tmp_path}/body_mass.png, too."
    options = ["--mcp-config", ".mcp.json", "--strict-mcp-config"]
    allowed = ["--allowedTools", "mcp__python_executor", "ToolSearch"]
    environment = {
        "HOME": str(home),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "RINGFENCE_URL": server.url,
        "RINGFENCE_API_KEY": server.key,
    }
    claude = [f"{package}/_bundled/claude", "--print", task, "--model", "scripted", *options, *allowed]
    run(claude, tmp_path, **environment)
