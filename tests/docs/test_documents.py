"""The documents agree with the code where that can be checked."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from ringfence.agents.models import KEY_VARIABLE, MODEL_VARIABLE, URL_VARIABLE
from ringfence.cli import cli
from ringfence.core.config import Settings
from ringfence.engine.templates import BUILTIN
from ringfence.integrations.mcp.servers.texts import descriptions
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


def test_the_servers_options_exist_and_have_these_defaults() -> None:
    rows = re.findall(r"^\| (`--[^|]*) \| ([^|]*) \|", E2B_SETUP, re.MULTILINE)
    help_text = CliRunner().invoke(cli, ["serve", "--help"]).output
    for options, defaults in rows:
        names = re.findall(r"`--([a-z-]+)`", options)
        for name in names:
            assert f"--{name} " in help_text
        for name, shown in zip(names, defaults.split(", "), strict=False):
            default = ServeSettings.model_fields[name.replace("-", "_")].default
            if isinstance(default, tuple) and default:
                assert shown == f"`{','.join(default)}`"
            elif isinstance(default, str | int):
                assert shown.strip("`") == str(default), name
    assert len(rows) > 10


def test_the_settings_of_the_tools_exist_and_have_these_defaults() -> None:
    fields = {str(field.validation_alias): field for field in Settings.model_fields.values()}
    others = {
        "RINGFENCE_CACHE_DIR",
        "RINGFENCE_TEMPLATE_PYTHON",
        "RINGFENCE_TOOL_MAPPING",
        *(MODEL_VARIABLE, URL_VARIABLE, KEY_VARIABLE),
        "RINGFENCE_NETWORK_DEFAULT",
    }
    assert set(re.findall(r"`((?:RINGFENCE|E2B)_[A-Z_]+)[`=]", USAGE)) <= fields.keys() | others
    for name, shown in re.findall(r"^\| `([A-Z0-9_]+)` \| ([^ |]+) \|", USAGE, re.MULTILINE):
        if name in fields:
            assert shown.strip("`") == str(fields[name].default), name


def test_the_tools_exist() -> None:
    section = USAGE.partition("| tool | what it does |")[2].partition("\n\n")[0]
    rows = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    documented = set(re.findall(r"`([a-z_]+)`", "\n".join(rows)))
    assert "execute_code" in documented
    assert documented <= descriptions(Settings()).keys()


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
