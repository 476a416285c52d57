"""A real engine with the smallest template, for the tests of this folder."""

from collections.abc import AsyncIterator

import pytest

from ringfence.core.ids import new_sandbox_id
from ringfence.engine.engine import Engine
from ringfence.engine.model import Sandbox, SandboxSpec
from ringfence.engine.settings import EngineSettings

TEMPLATE = "base"


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = await Engine.start(EngineSettings(templates=(TEMPLATE,)))
    yield engine
    await engine.aclose()


@pytest.fixture
async def sandbox(engine: Engine) -> Sandbox:
    return await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE))
