import sys
from pathlib import Path

import pytest

from ringfence.agents.mapping import load_mapping
from ringfence.core.errors import ConfigurationError

VALID = """
version: 1
servers:
  s: {command: run-me, env: {KEY: "${SECRET:?set SECRET}"}}
agents:
  a: {servers: {s: {tools: [read_*]}}}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mapping.yaml"
    path.write_text(text)
    return path


def test_the_packaged_mapping_has_the_data_scientist() -> None:
    mapping = load_mapping()
    grant = mapping.agents["data_scientist"].servers["python_executor"]
    assert grant.allows("execute_code")
    assert not grant.allows("close_session")
    parameters = mapping.parameters("python_executor", {"E2B_API_KEY": "e2b_00"})
    assert parameters.command == sys.executable
    assert parameters.env["E2B_API_KEY"] == "e2b_00"
    assert parameters.env["RINGFENCE_URL"] == ""
    assert "e2b_00" not in repr(parameters)


def test_a_file_extends_the_packaged_one(tmp_path: Path) -> None:
    mapping = load_mapping(write(tmp_path, VALID))
    assert set(mapping.agents) == {"data_scientist", "a"}
    assert mapping.agents["a"].servers["s"].allows("read_file")


def test_the_variable_names_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGFENCE_TOOL_MAPPING", str(write(tmp_path, VALID)))
    assert "a" in load_mapping().agents


def test_a_missing_variable_is_an_error_only_for_its_server(tmp_path: Path) -> None:
    mapping = load_mapping(write(tmp_path, VALID))
    mapping.parameters("python_executor", {})
    with pytest.raises(
        ConfigurationError, match=r"servers\.s\.env\.KEY: the variable SECRET is needed: set SECRET"
    ):
        mapping.parameters("s", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 2", "version"),
        ("[]", "should be a mapping"),
        ("version: 1\nservers: {s: {}}", "servers.s: needs exactly one of command and url"),
        ("version: 1\nservers: {s: {command: a, url: 'http://b'}}", "needs exactly one"),
        ("version: 1\nservers: {s: {command: a, headers: {x: y}}}", "headers are for a url"),
        ("version: 1\nservers: {s: {comand: a}}", "servers.s.comand"),
        ("version: 1\nservers: {s: {command: a}, s: {command: b}}", "duplicate key 's'"),
        ("version: 1\n? [a, b]\n: c", "no plain value"),
        (
            "version: 1\nagents: {a: {servers: {nowhere: {tools: [x]}}}}",
            "agents.a.servers.nowhere: there is no such",
        ),
        (
            "version: 1\nagents: {a: {servers: {python_executor: {tools: []}}}}",
            "agents.a.servers.python_executor.tools",
        ),
        ("version: 1\nservers: {s: {command: !!python/object/apply:os.getpid []}}", "mapping.yaml"),
        ("version: 1\n  bad", "mapping.yaml"),
    ],
)
def test_errors_name_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_mapping(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nothing\.yaml"):
        load_mapping(tmp_path / "nothing.yaml")
