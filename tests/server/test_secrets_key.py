"""A server that has secrets and not their key says so before it serves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ringfence.core.errors import ConfigurationError
from ringfence.server.errors import ApiError
from ringfence.server.secrets.service import Secrets


@pytest.fixture
async def data_dir(tmp_path: Path) -> Path:
    """With one secret."""
    secrets = Secrets(tmp_path / "ringfence.db", tmp_path / "secrets.key")
    secrets.check()
    await secrets.create("owner", "one", "value", {})
    secrets.check()
    secrets.close()
    return tmp_path


@pytest.mark.parametrize(
    ("loss", "why"),
    [
        (lambda key: key.unlink(), "No such file"),
        (lambda key: key.write_bytes(os.urandom(32)), "not the key it was encrypted with"),
        (lambda key: key.write_bytes(b"short"), "not a key of 32 bytes"),
        (lambda key: key.chmod(0o644), "chmod 600"),
    ],
)
async def test_a_lost_key_is_named_and_no_other_is_made(data_dir: Path, loss: object, why: str) -> None:
    key_file = data_dir / "secrets.key"
    loss(key_file)  # type: ignore[operator]
    there = key_file.exists()
    secrets = Secrets(data_dir / "ringfence.db", key_file)
    with pytest.raises(ConfigurationError, match=rf"1 of 1 secrets .*secrets\.key.*{why}.*backup"):
        secrets.check()
    if not there:
        with pytest.raises(ApiError, match="No such file"):
            await secrets.create("owner", "two", "value", {})
        assert not key_file.exists()
    secrets.close()


async def test_a_server_does_not_start_without_it(data_dir: Path) -> None:
    (data_dir / "secrets.key").unlink()
    command = [sys.executable, "-m", "ringfence", "serve", "--port", "0", "--data-dir", str(data_dir)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode != 0
    assert "secrets.key" in run.stderr
    assert "backup" in run.stderr
    assert "Traceback" not in run.stderr
