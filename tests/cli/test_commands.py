import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ringfence import __version__


def ringfence(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-P", "-m", "ringfence", *arguments]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)


def test_help_names_every_command() -> None:
    ended = ringfence("--help")
    assert ended.returncode == 0
    for name in ("run", "mcp", "agent", "serve", "ps", "kill", "doctor", "template", "version"):
        assert f"\n  {name} " in ended.stdout
        assert ringfence(name, "--help").returncode == 0


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom ringfence.cli import cli\n"
        "try:\n    cli(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('e2b', 'mcp', 'pydantic', 'uvicorn', 'yaml') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.stdout.rstrip().endswith("[]")


def test_version() -> None:
    assert ringfence("version").stdout == f"{__version__}\n"
    assert __version__ in ringfence("--version").stdout


def test_an_unknown_command_is_a_usage_error() -> None:
    assert ringfence("fly").returncode == 2


def test_templates_are_listed() -> None:
    listed = json.loads(ringfence("template", "list", "--json").stdout)
    assert [row["name"] for row in listed if row["default"]] == ["code-interpreter-v1"]
    assert "base" in ringfence("template", "list").stdout


def test_an_unknown_template_is_one_line() -> None:
    ended = ringfence("template", "build", "no-such")
    assert ended.returncode == 1
    assert ended.stderr.startswith("ringfence: unknown template 'no-such'")
    assert "Traceback" not in ended.stderr


def test_wrong_settings_of_a_server_are_one_line() -> None:
    ended = ringfence("serve", env={"RINGFENCE_MAX_SANDBOXES": "many"})
    assert ended.returncode == 1
    assert "max_sandboxes" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_wrong_dockerfile_is_one_line(tmp_path: Path) -> None:
    server = {"E2B_API_URL": "http://127.0.0.1:1", "E2B_API_KEY": "e2b_" + "0" * 40}
    for text in ("FROM\n", "\0\1", "FROM a AS b\nFROM b\n", ""):
        (tmp_path / "Dockerfile").write_text(text)
        ended = ringfence("template", "build", "x", "-f", str(tmp_path / "Dockerfile"), env=server)
        assert ended.returncode == 1
        assert ended.stderr.startswith(f"Error: {tmp_path}/Dockerfile: ")
        assert "Traceback" not in ended.stderr
