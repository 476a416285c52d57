"""`ringfence agent` as typed, with a local server that speaks OpenAI's chat-completions protocol."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import nbformat

PENGUINS = Path(__file__).parents[2] / "examples" / "data" / "penguins.csv"
COMMAND = [sys.executable, "-P", "-m", "ringfence", "agent", "data_scientist"]
PASSED_ON = ("PATH", "HOME", "LANG", "TMPDIR", "XDG_CACHE_HOME", "RINGFENCE_CACHE_DIR")

Turn = str | tuple[str, dict[str, Any]]
"""What the model says, or the tool it calls with its arguments."""


@dataclass
class ModelServer:
    """`base_url` for clients; what they sent is in `requests` and `keys`."""

    base_url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


@contextmanager
def model_server(turns: Sequence[Turn], status: int = 200) -> Iterator[ModelServer]:
    """Serve `turns`, one for each request."""
    told = ModelServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            told.requests.append(body)
            told.keys.append(self.headers.get("Authorization"))
            number = sum(message["role"] == "assistant" for message in body["messages"])
            known = self.path == "/v1/chat/completions" and status == 200
            answer = _completion(turns[number], number) if known else {"error": {"message": "no such model"}}
            data = json.dumps(answer).encode()
            self.send_response(status if status != 200 or known else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.base_url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _completion(turn: Turn, number: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": turn if isinstance(turn, str) else None}
    if not isinstance(turn, str):
        function = {"name": turn[0], "arguments": json.dumps(turn[1])}
        message["tool_calls"] = [{"id": f"call-{number}", "type": "function", "function": function}]
    return {
        "id": f"answer-{number}",
        "object": "chat.completion",
        "created": 1,
        "model": "scripted",
        "choices": [
            {
                "index": 0,
                "message": message,
                "finish_reason": "stop" if isinstance(turn, str) else "tool_calls",
            }
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }


LOOK = "import pandas as pd\npenguins = pd.read_csv('penguins.csv')\nprint(penguins.shape)"
FIT = "means = penguins.groupby('species')['body_mass_g'].mean()\nprint(means.round().to_dict())"
DRAW = "import matplotlib.pyplot as plt\nmeans.plot.bar()\nplt.show()"
ANSWER = (
    "# What drives body mass\n\nSpecies does; see ![means by species](chart-1.png).\n\n"
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n<script>alert(1)</script> ![spy](https://example.com/?data=1)"
)


def environ(**own: str) -> dict[str, str]:
    return {**{name: os.environ[name] for name in PASSED_ON if name in os.environ}, **own}


def agent(directory: Path, *arguments: str, env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    command = [*COMMAND, *arguments]
    return subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True)


def test_without_a_model_it_says_what_to_set(tmp_path: Path) -> None:
    ended = agent(tmp_path, "What drives body mass?", env=environ())
    assert ended.returncode == 1
    for said in (
        "RINGFENCE_AGENT_MODEL=",
        "--model",
        "OPENAI_API_KEY",
        "--base-url",
        "RINGFENCE_AGENT_API_KEY",
    ):
        assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.iterdir())


def test_an_analysis_from_the_question_to_the_report(tmp_path: Path) -> None:
    """Everything is real but the model: the embedded server, its sandbox, the data."""
    turns = [("execute_code", {"code": code}) for code in (LOOK, FIT, DRAW)]
    env = environ(RINGFENCE_BACKEND="local", RINGFENCE_AGENT_MODEL="scripted", RINGFENCE_AGENT_API_KEY="k-1")
    with model_server([*turns, ANSWER]) as model:
        ended = agent(
            tmp_path, "What drives body mass?", "--file", str(PENGUINS), "--base-url", model.base_url, env=env
        )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("# What drives body mass")
    assert "4 requests, 3 tool calls, 40 tokens in, 20 out" in ended.stderr
    assert model.keys == ["Bearer k-1"] * 4
    asked = model.requests[-1]["messages"]
    outputs = [message["content"] for message in asked if message["role"] == "tool"]
    assert "(344, " in outputs[0]
    assert "Adelie" in outputs[1]
    assert "chart-1.png" in json.dumps(outputs[2])
    assert "data:image/png;base64," in json.dumps(asked)
    _check_report(tmp_path / "report")


def _check_report(out: Path) -> None:
    assert sorted(path.name for path in out.iterdir()) == [
        "analysis.ipynb",
        "chart-1.png",
        "report.html",
        "report.md",
    ]
    chart = (out / "chart-1.png").read_bytes()
    assert chart.startswith(b"\x89PNG")
    assert "![means by species](chart-1.png)" in (out / "report.md").read_text()
    page = (out / "report.html").read_text()
    assert f"data:image/png;base64,{base64.b64encode(chart).decode()}" in page
    assert "<table>" in page
    assert "<script>" not in page
    assert 'src="http' not in page
    notebook = nbformat.read(out / "analysis.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert code == [LOOK, FIT, DRAW]


def test_a_model_that_refuses_is_one_line(server: Any, tmp_path: Path) -> None:
    env = environ(RINGFENCE_URL=server.url, RINGFENCE_API_KEY=server.key)
    with model_server(["never"], status=401) as model:
        ended = agent(tmp_path, "Hello", "--model", "m", "--base-url", model.base_url, env=env)
    assert ended.returncode == 1
    assert ended.stderr.startswith("ringfence: the model m failed: ")
    assert "Traceback" not in ended.stderr


def test_a_run_that_passes_its_limit_leaves_the_notebook(server: Any, tmp_path: Path) -> None:
    env = environ(RINGFENCE_URL=server.url, RINGFENCE_API_KEY=server.key)
    turns = [("execute_code", {"code": f"print({number})"}) for number in range(4)]
    with model_server(turns) as model:
        limit = ("--max-requests", "2", "--quiet", "--out", "here")
        ended = agent(tmp_path, "Count", *limit, "--model", "m", "--base-url", model.base_url, env=env)
    assert ended.returncode == 1
    assert ended.stderr.startswith("ringfence: the run of data_scientist was ended: ")
    notebook = nbformat.read(tmp_path / "here" / "analysis.ipynb", as_version=4)
    assert notebook.cells[0].source == "print(0)"
    assert not (tmp_path / "here" / "report.md").exists()


def test_a_large_file_gets_in_and_the_original_stays(server: Any, tmp_path: Path) -> None:
    large = tmp_path / "large.bin"
    large.write_bytes(b"x" * (3 * 1024**2))
    env = environ(RINGFENCE_URL=server.url, RINGFENCE_API_KEY=server.key)
    code = "import os\nprint(os.path.getsize('large.bin'))"
    with model_server([("execute_code", {"code": code}), "done"]) as model:
        ended = agent(
            tmp_path, "Size?", "--file", str(large), "--model", "m", "--base-url", model.base_url, env=env
        )
    assert ended.returncode == 0, ended.stderr
    assert str(3 * 1024**2) in json.dumps(model.requests[-1])
    assert large.stat().st_size == 3 * 1024**2
