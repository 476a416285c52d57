"""Run one of the examples without a key: a scripted stand-in takes the model's place; the rest is real.

    python examples/frameworks/offline.py uv run examples/frameworks/pydantic_ai_agent.py

The data is analysed in a real sandbox, and the answer has the figures that came out of it.
"""

import os
import re
import subprocess
import sys

from scripted_model import Call, Conversation, Say, Turn, serve

_LOOK = "import pandas as pd\npenguins = pd.read_csv('penguins.csv')\nprint(penguins.describe().round(1))"
_MEANS = """\
means = penguins.groupby("species")["body_mass_g"].mean().sort_values()
lead = means.iloc[-1] - means.iloc[-2]
print(f"heaviest: {means.index[-1]}, {means.iloc[-1]:.0f} g on average, {lead:.0f} g more than the next")
"""
_DRAW = """\
import matplotlib.pyplot as plt
means.plot.barh(xlabel="mean body mass (g)")
plt.tight_layout()
plt.savefig("body_mass.png")
plt.show()
"""
_WANTED = "select:mcp__python_executor__upload_file,mcp__python_executor__download_file"
_FOUND = re.compile(r"heaviest: \w+, \d+ g on average, \d+ g more than the next")


def analyst(conversation: Conversation) -> Turn:
    """What the stand-in does next: with tools it uses them, without it writes code to be run."""
    if conversation.tool("execute_code") is not None:
        return _with_tools(conversation)
    return _with_code(conversation)


def _with_tools(conversation: Conversation) -> Turn:
    data = re.search(r"/\S+\.csv", conversation.task)
    chart = re.search(r"/\S+\.png", conversation.task)
    if data is None or chart is None:
        return Say("I was given no file.")
    # Claude Code shows tools by name only until they are asked for.
    search = [Call("ToolSearch", {"query": _WANTED})] if conversation.tool("ToolSearch") else []
    steps: list[Turn] = [
        *search,
        Call("upload_file", {"local_path": data[0]}),
        Call("execute_code", {"code": _LOOK}),
        Call("execute_code", {"code": _MEANS}),
        Call("execute_code", {"code": _DRAW}),
        Call("download_file", {"path": "body_mass.png", "local_path": chart[0], "overwrite": True}),
    ]
    if conversation.turn < len(steps):
        return steps[conversation.turn]
    answer = _found(conversation)
    if conversation.tool("final_answer") is not None:  # smolagents wants its answers by a tool
        return Call("final_answer", {"answer": answer})
    return Say(answer)


def _with_code(conversation: Conversation) -> Turn:
    steps = [_LOOK, _MEANS, _DRAW, f"final_answer({_found(conversation)!r})"]
    code = steps[min(conversation.turn, len(steps) - 1)]
    return Say(f"Thought: the next step.\n<code>\n{code}\n</code>")


def _found(conversation: Conversation) -> str:
    found = _FOUND.search("\n".join(conversation.heard))
    return found[0] if found else "I have found nothing."


def main() -> int:
    """Run the command that was given, and end with its exit status."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    with serve(analyst) as model:
        return subprocess.run(sys.argv[1:], env={**os.environ, **model.environment()}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
