"""Two hundred sandboxes at once; afterwards nothing is left. Not in the usual run: ``pytest -m load``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from e2b_code_interpreter import AsyncSandbox

if TYPE_CHECKING:
    from tests.conftest import RunningServer

COUNT = 200
AT_ONCE = 25
"""Requests under way at a time; the sandboxes all live together."""


@pytest.mark.load
@pytest.mark.timeout(900)
async def test_two_hundred_sandboxes(tmp_path: Path, launch: Callable[..., RunningServer]) -> None:
    server = launch(tmp_path, templates="base", RINGFENCE_MAX_SANDBOXES=str(COUNT))
    before = server.descendants()
    gate = asyncio.Semaphore(AT_ONCE)
    seconds: list[float] = []

    async def create(number: int) -> Any:
        async with gate:
            started = time.monotonic()
            box = await AsyncSandbox.create(
                "base", timeout=900, metadata={"number": str(number)}, **server.options
            )
            seconds.append(time.monotonic() - started)
            return box

    async def use(number: int, box: Any) -> None:
        async with gate:
            await box.files.write("number", str(number))
            execution = await box.run_code("int(open('number').read()) * 2", request_timeout=120)
            assert execution.text == str(number * 2)
            result = await box.commands.run(
                "cat number; hostname >/dev/null; sudo id -u", request_timeout=120
            )
            assert result.stdout == f"{number}0\n"

    async def kill(box: Any) -> None:
        async with gate:
            assert await box.kill() is True

    boxes = await asyncio.gather(*(create(number) for number in range(COUNT)))
    async with httpx.AsyncClient() as http:
        assert (await http.get(f"{server.url}/health")).json()["sandboxes"] == COUNT
    await asyncio.gather(*(use(number, box) for number, box in enumerate(boxes)))
    await asyncio.gather(*(kill(box) for box in boxes))
    seconds.sort()
    print(
        f"create: p50 {seconds[COUNT // 2]:.3f} s, p90 {seconds[COUNT * 9 // 10]:.3f} s, {AT_ONCE} at a time"
    )
    async with httpx.AsyncClient() as http:
        assert (await http.get(f"{server.url}/health")).json()["sandboxes"] == 0
    async with asyncio.timeout(20):
        while server.descendants() - before:
            await asyncio.sleep(0.1)
    assert server.stop() == 0
