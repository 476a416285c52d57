"""What models are shown by each client of the MCP server: text, a picture, an exception, a refusal, a flood.

    python tests/clients/shown.py

Runs the examples of `examples/frameworks`, Claude Code and (if `codex` is on the PATH) Codex, with a scripted
model that makes the same calls everywhere, and prints what the model then had in front of it as a table in
Markdown. The clients are installed by uv into environments of their own.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uv

from ringfence.engine.templates.indexes import uv_environment

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
sys.path.append(str(EXAMPLES / "frameworks"))
from scripted_model import Call, Conversation, Model, Say, Turn, serve  # noqa: E402

CALLS = {
    "text": {"code": "print('hello')\n6 * 7"},
    "image": {"code": "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.show()"},
    "exception": {"code": "1 / 0"},
    "tool error": {"code": "1", "session_id": "s_nobody"},
    "200 000 characters": {"code": "print('x' * 200_000)"},
}


def script(conversation: Conversation) -> Turn:
    """One call after the other, whatever comes back."""
    calls = list(CALLS.values())
    if conversation.tool("execute_code") is None or conversation.turn > len(calls):
        return Say("done")
    if conversation.turn < len(calls):
        return Call("execute_code", calls[conversation.turn])
    if conversation.tool("final_answer") is not None:
        return Call("final_answer", {"answer": "done"})
    return Say("done")


def results(path: str, body: dict[str, Any]) -> list[list[Any]]:
    """What each call gave, as blocks of content, from the last request."""
    found: list[list[Any]] = []
    if path.endswith("/responses"):
        found = [_blocks(i["output"]) for i in body["input"] if i.get("type") == "function_call_output"]
    elif path.endswith("/messages"):
        parts = [b for m in body["messages"] if isinstance(m["content"], list) for b in m["content"]]
        found = [_blocks(part["content"]) for part in parts if part.get("type") == "tool_result"]
    else:
        calls = 0
        for message in body["messages"]:
            calls += message["role"] == "assistant"
            if calls and message["role"] != "assistant":
                if len(found) < calls:
                    found.append([])
                found[-1] += _blocks(message["content"])
    return found


def _blocks(content: Any) -> list[Any]:
    return [content] if isinstance(content, str) else list(content or ())


def describe(blocks: list[Any]) -> str:
    """Text or JSON and its length, and pictures."""
    said = []
    for block in blocks:
        text = block if isinstance(block, str) else block.get("text")
        if text is None:
            said.append("image" if "image" in block.get("type", "") else block.get("type", "?"))
        elif text.strip():
            kind = "JSON" if _is_json(text) else "text"
            said.append(f"{kind}, {len(text)} characters")
    return " + ".join(said) or "nothing"


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False


def environ(model: Model, directory: Path) -> dict[str, str]:
    """The clients' variables."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PATH": programs, "EXAMPLE_OUT": str(directory), "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
    return {**uv_environment(os.environ, Path.home()), **own, **model.environment()}


def example(name: str) -> Callable[[Model, Path], list[str]]:
    """The command of an example."""
    return lambda model, directory: [
        *(uv.find_uv_bin(), "run", "--quiet", "--python", sys.executable),
        *("--script", str(EXAMPLES / "frameworks" / name)),
    ]


def claude(model: Model, directory: Path) -> list[str]:
    """Claude Code, from the package of its SDK."""
    shutil.copy(EXAMPLES / ".mcp.json", directory)
    find = "import claude_agent_sdk, os; print(os.path.dirname(claude_agent_sdk.__file__))"
    run = [
        uv.find_uv_bin(),
        "run",
        "--quiet",
        "--no-project",
        "--with",
        "claude-agent-sdk",
        "python",
        "-c",
        find,
    ]
    place = subprocess.run(
        run, env=environ(model, directory), capture_output=True, text=True, check=True
    ).stdout
    options = ["--mcp-config", ".mcp.json", "--strict-mcp-config", "--allowedTools", "mcp__python_executor"]
    return [f"{place.strip()}/_bundled/claude", "--print", "Go on.", "--model", "scripted", *options]


def codex(model: Model, directory: Path) -> list[str]:
    """Codex, where it is installed."""
    program = shutil.which("codex")
    if program is None:
        raise FileNotFoundError("codex is not on the PATH")
    ringfence = Path(sys.executable).parent / "ringfence"
    (directory / "config.toml").write_text(
        'model = "scripted"\nmodel_provider = "local"\napproval_policy = "never"\n'
        f'[model_providers.local]\nname = "local"\nbase_url = "{model.url}/v1"\nwire_api = "responses"\n'
        f'env_key = "OPENAI_API_KEY"\n[mcp_servers.python_executor]\ncommand = "{ringfence}"\n'
        'args = ["mcp"]\nrequired = true\nstartup_timeout_sec = 60\ntool_timeout_sec = 600\n'
        'default_tools_approval_mode = "approve"\n'
    )
    return [program, "exec", "--skip-git-repo-check", "Go on."]


CLIENTS: dict[str, Callable[[Model, Path], list[str]]] = {
    "pydantic-ai": example("pydantic_ai_agent.py"),
    "openai-agents": example("openai_agents_agent.py"),
    "LangChain": example("langchain_agent.py"),
    "smolagents": example("smolagents_mcp.py"),
    "Claude Code": claude,
    "Codex": codex,
}


def ask(command: Callable[[Model, Path], list[str]]) -> list[str]:
    """What the model was shown for each of the calls."""
    with serve(script) as model, tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        ran = subprocess.run(
            command(model, directory),
            env={**environ(model, directory), **({"CODEX_HOME": place} if command is codex else {})},
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        told = [results(path, body) for path, body in model.requests]
    longest = max(told, key=len, default=[])
    if len(longest) < len(CALLS):
        raise RuntimeError(f"{len(longest)} of {len(CALLS)} results: {ran.stdout[-500:]}{ran.stderr[-1500:]}")
    return [describe(blocks) for blocks in longest[: len(CALLS)]]


def main() -> None:
    """Print the table, client by client."""
    print("| client | " + " | ".join(CALLS) + " |")
    print("|---" * (len(CALLS) + 1) + "|", flush=True)
    for name, command in CLIENTS.items():
        if len(sys.argv) > 1 and name not in sys.argv[1:]:
            continue
        try:
            print(f"| {name} | " + " | ".join(ask(command)) + " |", flush=True)
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            print(f"| {name} | not tried: {str(error)[:1800]} |", flush=True)


if __name__ == "__main__":
    main()
