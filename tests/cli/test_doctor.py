import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def doctor(tmp_path: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-P", "-m", "ringfence", "doctor", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


def test_a_working_backend(tmp_path: Path, server: Any) -> None:
    settings = {"RINGFENCE_URL": server.url, "RINGFENCE_API_KEY": server.key, "RINGFENCE_TEMPLATE": "base"}
    ended = doctor(tmp_path, **settings)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "backend: remote" in ended.stdout
    assert "It works." in ended.stdout
    assert "network: internet by default, internet at most; the MCP server asks for packages" in ended.stdout
    for layer in server.isolation["layers"]:
        assert layer["name"] in ended.stdout
    report = json.loads(doctor(tmp_path, "--json", **settings).stdout)
    assert report["works"] is True
    assert report["isolation"]["layers"] == server.isolation["layers"]


def test_the_embedded_backend(tmp_path: Path) -> None:
    ended = doctor(tmp_path, "--quick", RINGFENCE_TEMPLATE="base")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "backend: local" in ended.stdout
    assert "isolation: " in ended.stdout
    assert "attacks contained: " in ended.stdout
    assert "got through:" not in ended.stdout


def test_a_wrong_key_is_told(tmp_path: Path, server: Any) -> None:
    ended = doctor(tmp_path, E2B_API_KEY="e2b_00", E2B_API_URL=server.url, E2B_SANDBOX_URL=server.url)
    assert ended.returncode == 1
    assert "backend: e2b" in ended.stdout
    assert "key: refused" in ended.stdout
    assert "the key in E2B_API_KEY is refused" in ended.stdout


def test_a_right_key_and_every_other_mistake_are_told(tmp_path: Path, server: Any) -> None:
    cloud = {"E2B_API_KEY": server.key, "E2B_API_URL": server.url, "E2B_SANDBOX_URL": server.url}
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\ndefault: e2b\nrules: [{use: remote, resident: true}]\n")
    there = {"RINGFENCE_URL": server.url, "RINGFENCE_API_KEY": "e2b_00", "RINGFENCE_TEMPLATE": "base"}
    report = json.loads(
        doctor(tmp_path, "--json", **cloud, **there, RINGFENCE_BACKEND_POLICY=str(policy)).stdout
    )
    assert (report["backend"], report["key"], report["works"]) == ("e2b", "accepted", True)
    (other,) = report["others"]
    assert (other["backend"], other["works"]) == ("remote", False)
    assert "RINGFENCE_API_KEY is refused" in other["error"]

    ended = doctor(tmp_path, **cloud, RINGFENCE_TEMPLATE="no-such")
    assert ended.returncode == 1
    assert "RINGFENCE_TEMPLATE must name a template" in ended.stdout
    ended = doctor(tmp_path, **{**cloud, "E2B_API_URL": "http://127.0.0.1:9"})
    assert ended.returncode == 1
    assert "no connection to e2b" in ended.stdout


def test_contradicting_settings_are_told(tmp_path: Path) -> None:
    ended = doctor(tmp_path, RINGFENCE_BACKEND="remote")
    assert ended.returncode == 1
    assert "RINGFENCE_URL is not set" in ended.stdout
