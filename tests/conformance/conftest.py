"""One test for both faces of the official SDK: the synchronous and the asynchronous."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from e2b_code_interpreter import AsyncSandbox, Sandbox

if TYPE_CHECKING:
    from tests.conftest import RunningServer


@dataclass(frozen=True)
class Face:
    """One of the SDK's two interfaces. Calling it calls a function of the SDK and gives its result."""

    name: str
    Sandbox: Any
    options: dict[str, Any]

    async def __call__(self, function: Callable[..., Any], *args: Any, **named: Any) -> Any:
        if self.name == "sync":
            return await asyncio.to_thread(function, *args, **named)
        return await function(*args, **named)


@pytest.fixture(params=["sync", "async"])
def sdk(request: pytest.FixtureRequest, server: RunningServer) -> Face:
    kind = Sandbox if request.param == "sync" else AsyncSandbox
    return Face(request.param, kind, server.options)


@pytest.fixture
async def make(sdk: Face) -> AsyncIterator[Callable[..., Any]]:
    """Makes sandboxes of the template ``base`` that end with the test."""
    made = []

    async def create(**options: Any) -> Any:
        made.append(await sdk(sdk.Sandbox.create, "base", **{**sdk.options, **options}))
        return made[-1]

    yield create
    for sandbox in made:
        await sdk(sandbox.kill)


@pytest.fixture
async def box(make: Callable[..., Any]) -> Any:
    """A fresh sandbox."""
    return await make()
