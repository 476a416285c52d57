"""What is shipped beside the wheel agrees with it: versions, names, tools, settings."""

import json
import re
import tomllib
from pathlib import Path

from ringfence import __version__
from ringfence.core.config import Settings
from ringfence.integrations.mcp.servers.http.settings import HttpSettings
from ringfence.integrations.mcp.servers.tools import TOOLS

ROOT = Path(__file__).parents[2]
CLIENTS = (ROOT / "docs/guides/MCP_CLIENTS.md").read_text()
MANIFEST = json.loads((ROOT / "packaging/mcpb/manifest.json").read_text())
REGISTRY = json.loads((ROOT / "server.json").read_text())


def test_versions_agree() -> None:
    (package,) = REGISTRY["packages"]
    bundle = tomllib.loads((ROOT / "packaging/mcpb/pyproject.toml").read_text())["project"]
    assert (
        REGISTRY["version"] == package["version"] == MANIFEST["version"] == bundle["version"] == __version__
    )
    assert bundle["dependencies"] == [f"ringfence=={__version__}"]


def test_the_readme_names_the_registrys_entry() -> None:
    assert f"<!-- mcp-name: {REGISTRY['name']} -->" in (ROOT / "README.md").read_text()
    assert len(REGISTRY["description"]) <= 100


def test_the_bundle_lists_the_tools() -> None:
    assert [tool["name"] for tool in MANIFEST["tools"]] == [tool.function.__name__ for tool in TOOLS]


def test_settings_that_are_named_exist() -> None:
    known = {
        str(field.validation_alias)
        for model in (Settings, HttpSettings)
        for field in model.model_fields.values()
    }
    named = set(re.findall(r"\b(?:RINGFENCE_(?!TOKEN)|E2B_)[A-Z_]+\b", CLIENTS))
    assert named <= known
    (package,) = REGISTRY["packages"]
    assert {variable["name"] for variable in package["environmentVariables"]} <= known
    assert set(MANIFEST["server"]["mcp_config"]["env"]) <= known


def test_defaults_that_are_named_are_these() -> None:
    fields = {str(field.validation_alias): field for field in HttpSettings.model_fields.values()}
    for name, shown in re.findall(r"^\| `(RINGFENCE_MCP_[A-Z_]+)` \| (\d+) \|", CLIENTS, re.MULTILINE):
        assert str(fields[name].default) == shown, name


def test_configurations_parse() -> None:
    blocks = re.findall(r"```(json|toml)\n(.*?)```", CLIENTS, re.DOTALL)
    parsed = [json.loads(text) if kind == "json" else tomllib.loads(text) for kind, text in blocks]
    for block in parsed:
        (server,) = next(iter(block.values())).values()
        assert (server["command"], server["args"]) == ("ringfence", ["mcp"])
    assert len(parsed) == 4
