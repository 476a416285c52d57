# /// script
# requires-python = ">=3.11"
# dependencies = ["smolagents[e2b,openai]>=1.26,<2"]
# ///
"""smolagents' code agent with its own E2B executor, in sandboxes of a Ringfence server.

    uv run examples/frameworks/smolagents_e2b.py

wants ``E2B_API_KEY``, ``E2B_API_URL`` and ``E2B_SANDBOX_URL`` (see docs/guides/E2B_SETUP.md); with the key
alone it runs in E2B's cloud.
"""

import os
import sys

from penguin_task import CHART, DATA, MODEL, OUT, report
from smolagents import CodeAgent, OpenAIModel

TASK = (
    "Which of the penguin species in /home/user/penguins.csv is the heaviest, and by how much? Look at the "
    "file, compute the mean body mass of each species, and draw a bar chart. Save it as "
    "/home/user/body_mass.png."
)


def main() -> None:
    """Let the agent do the task; every piece of code it writes runs in the sandbox."""
    if "E2B_API_KEY" not in os.environ:
        sys.exit("Set E2B_API_KEY, and for a Ringfence server E2B_API_URL and E2B_SANDBOX_URL.")
    packages = ["pandas", "matplotlib"]
    with CodeAgent(
        tools=[],
        model=OpenAIModel(MODEL),
        executor_type="e2b",
        additional_authorized_imports=packages,
        verbosity_level=0,
    ) as agent:
        sandbox = agent.python_executor.sandbox
        sandbox.files.write("/home/user/penguins.csv", DATA.read_text())
        answer = agent.run(TASK)
        OUT.mkdir(parents=True, exist_ok=True)
        CHART.write_bytes(sandbox.files.read("/home/user/body_mass.png", format="bytes"))
    report(answer)


if __name__ == "__main__":
    main()
