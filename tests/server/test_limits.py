"""Limits in the metadata of a create request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from e2b import SandboxException
from e2b_code_interpreter import Sandbox

from ringfence.engine.model import Limits
from ringfence.server.errors import ApiError
from ringfence.server.limits import with_requested

if TYPE_CHECKING:
    from conftest import RunningServer


def test_what_is_asked_for_replaces_the_templates() -> None:
    asked = {"ringfence.memory_mb": "256", "ringfence.cpus": "0.5", "other": "x"}
    assert with_requested(Limits(), asked) == Limits(memory_mb=256, cpus=0.5)


@pytest.mark.parametrize("text", ["", "0", "-1", "many", "1.5", "9" * 30, "nan"])
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(ApiError, match=r"ringfence\.pids"):
        with_requested(Limits(), {"ringfence.pids": text})


def test_more_memory_than_the_operators_ceiling_is_refused() -> None:
    with pytest.raises(ApiError, match="512 at most"):
        with_requested(Limits(memory_mb=256), {"ringfence.memory_mb": "1024"}, 512)


def test_it_holds_inside(server: RunningServer) -> None:
    metadata = {"ringfence.memory_mb": "256", "ringfence.disk_mb": "32"}
    sandbox = Sandbox.create("base", metadata=metadata, **server.options)
    try:
        assert sandbox.get_info().memory_mb == 256
        total = sandbox.commands.run("head -1 /proc/meminfo").stdout.split()[1]
        assert int(total) == 256 << 10
        full = sandbox.commands.run("head -c 64M /dev/zero > /tmp/f || true; stat -c %s /tmp/f").stdout
        assert int(full) <= 32 << 20
    finally:
        sandbox.kill()


def test_the_ceiling_holds(server: RunningServer) -> None:
    with pytest.raises(SandboxException, match="pids"):
        Sandbox.create("base", metadata={"ringfence.pids": "1000000"}, **server.options)
