"""The documents agree with the code where that can be checked."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from ringfence.cli import cli
from ringfence.core.config import Settings
from ringfence.engine.templates import BUILTIN
from ringfence.integrations.mcp.servers.python_executor_server import build
from ringfence.server.settings import ServeSettings

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
E2B_SETUP = (ROOT / "docs/guides/E2B_SETUP.md").read_text()
USAGE = (ROOT / "docs/guides/DATA_SCIENCE_TOOLS_USAGE.md").read_text()
README = (ROOT / "README.md").read_text()


def test_the_promised_documents_exist() -> None:
    names = {str(path.relative_to(ROOT)) for path in DOCUMENTS}
    assert {
        *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
        "docs/guides/E2B_SETUP.md",
        "docs/architecture/DATA_SCIENCE_TOOLS_ARCHITECTURE.md",
        "docs/guides/DATA_SCIENCE_TOOLS_USAGE.md",
    } <= names


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if not target.startswith(("http://", "https://", "#")):
            assert (document.parent / target.partition("#")[0]).exists(), f"{document.name}: {target}"


def test_the_servers_options_are_all_there_with_their_defaults() -> None:
    table = "\n".join(line for line in E2B_SETUP.splitlines() if line.startswith("| `--"))
    shown = set(re.findall(r"`--([a-z-]+)`", table))
    internal = {"api-key", "ready-fd", "lifeline-fd", "log-level", "runtime-dir"}
    assert shown == {name.replace("_", "-") for name in ServeSettings.model_fields} - internal
    options = CliRunner().invoke(cli, ["serve", "--help"]).output
    for option in shown:
        assert f"--{option} " in options
    for name in ("max_sandboxes", "max_timeout", "max_upload_mb", "port"):
        assert f"{ServeSettings.model_fields[name].default}" in table, name
    assert f"`{','.join(ServeSettings.model_fields['templates'].default)}`" in table


def test_the_settings_of_the_tools_are_all_there() -> None:
    names = {str(field.validation_alias) for field in Settings.model_fields.values()}
    sdk = {"E2B_DOMAIN", "E2B_API_URL", "E2B_SANDBOX_URL"}
    documented = set(re.findall(r"`((?:RINGFENCE|E2B)_[A-Z_]+)`", USAGE))
    assert names - sdk <= documented
    for name in ("lease", "exec_timeout", "request_timeout", "start_timeout"):
        field = Settings.model_fields[name]
        assert re.search(rf"`{field.validation_alias}` \| {field.default} ", USAGE), name


async def test_the_tools_are_all_there() -> None:
    tools = {tool.name for tool in await build(Settings()).list_tools()}
    table = "\n".join(line.split("|")[1] for line in USAGE.splitlines() if line.startswith("| `"))
    assert tools <= set(re.findall(r"`([a-z_]+)`", table))


def test_the_templates_are_all_there() -> None:
    section = E2B_SETUP.partition("## Templates")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z0-9-]+)`", section, re.MULTILINE)) == set(BUILTIN)


def test_the_readmes_configurations_parse() -> None:
    blocks = re.findall(r"```(json|toml)\n(.*?)```", README, re.DOTALL)
    parsed = [json.loads(text) if kind == "json" else tomllib.loads(text) for kind, text in blocks]
    servers = [next(iter(block.values()))["python_executor"] for block in parsed]
    assert len(servers) == 3
    for server in servers:
        assert server["command"].endswith("/ringfence") and server["args"] == ["mcp"]
