"""Which indexes sandboxes get to know."""

from pathlib import Path

import pytest

from ringfence.engine.egress.packages import package_indexes
from ringfence.engine.templates import indexes


@pytest.fixture(autouse=True)
def _no_system_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(indexes, "SYSTEM_PIP_CONF", tmp_path / "none")


PYPI = {("pypi.org", 443), ("files.pythonhosted.org", 443)}
NPM = {("registry.npmjs.org", 443)}
NOWHERE = {"XDG_CONFIG_DIRS": "/nonexistent"}


def test_without_any_configuration(tmp_path: Path) -> None:
    found = package_indexes(NOWHERE, tmp_path)
    assert set(found.hosts) == PYPI | NPM
    assert found.env == {}


def test_a_private_index_without_its_credentials(tmp_path: Path) -> None:
    environ = {**NOWHERE, "PIP_INDEX_URL": "https://me:secret@index.corp:8443/simple"}
    found = package_indexes(environ, tmp_path)
    assert set(found.hosts) == {("index.corp", 8443)} | NPM
    assert found.env["PIP_INDEX_URL"] == found.env["UV_DEFAULT_INDEX"] == "https://index.corp:8443/simple"
    assert "secret" not in repr(found)


def test_files_of_this_machine_stay_outside(tmp_path: Path) -> None:
    (tmp_path / ".pip").mkdir()
    (tmp_path / ".pip" / "pip.conf").write_text(
        "[global]\nextra-index-url = file:///srv/simple http://extra.corp/simple\nfind-links = /srv/wheels\n"
    )
    found = package_indexes(NOWHERE, tmp_path)
    assert set(found.hosts) == PYPI | NPM | {("extra.corp", 80)}
    assert found.env["PIP_EXTRA_INDEX_URL"] == found.env["UV_INDEX"] == "http://extra.corp/simple"
    assert "srv" not in repr(found)


def test_npm(tmp_path: Path) -> None:
    (tmp_path / ".npmrc").write_text("registry=https://npm.corp/\n//npm.corp/:_authToken=secret\n")
    found = package_indexes(NOWHERE, tmp_path)
    assert ("npm.corp", 443) in found.hosts
    assert found.env == {"NPM_CONFIG_REGISTRY": "https://npm.corp/"}


def test_the_authorities_this_machine_trusts(tmp_path: Path) -> None:
    found = package_indexes({**NOWHERE, "SSL_CERT_FILE": "/corp/ca.pem"}, tmp_path)
    assert found.env["PIP_CERT"] == found.env["REQUESTS_CA_BUNDLE"] == "/etc/ssl/certs/ca-certificates.crt"
