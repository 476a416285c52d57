"""Two sandboxes forked from one zygote: nothing random is equal, and with fresh kernels nothing at all."""

import json
from typing import Any

import pytest

from ringfence.core.ids import new_sandbox_id
from ringfence.engine.engine import Engine
from ringfence.engine.model import SandboxSpec
from ringfence.engine.proof.guest_client import run_cell
from ringfence.engine.settings import EngineSettings

TEMPLATE = "code-interpreter-v1"
DRAWS = """
import ctypes, json, os, random, secrets, ssl, tempfile, uuid
import numpy as np
print(json.dumps({
    "random": random.random(), "random.Random": random.Random().random(), "urandom": os.urandom(8).hex(),
    "secrets": secrets.token_hex(8), "openssl": ssl.RAND_bytes(8).hex(), "libc": ctypes.CDLL(None).random(),
    "numpy legacy": float(np.random.rand()), "numpy generator": float(np.random.default_rng().random()),
    "uuid4": str(uuid.uuid4()), "uuid1": str(uuid.uuid1()), "clock sequence": uuid.uuid1().clock_seq,
    "temporary name": next(tempfile._get_candidate_names()),
}))
"""
SHARED = """
import json
with open("/proc/self/maps") as maps:
    lines = list(maps)
heap, library = (next(line.split()[0] for line in lines if name in line) for name in ("[heap]", "/libc"))
print(json.dumps({"hash seed": hash("x"), "layout": library, "heap": heap}))
"""


async def draw(engine: Engine, code: str, count: int = 3) -> list[dict[str, Any]]:
    answers = []
    for _ in range(count):
        sandbox = await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE))
        events = await run_cell(sandbox, "", code)
        text = "".join(event["text"] for event in events if event["type"] == "stdout")
        assert text, events
        answers.append(json.loads(text))
        await engine.kill(sandbox.sandbox_id)
    return answers


def equal(answers: list[dict[str, Any]]) -> set[str]:
    return {name for name in answers[0] if len({answer[name] for answer in answers}) < len(answers)}


async def test_nothing_random_is_equal_in_two_sandboxes() -> None:
    engine = await Engine.start(EngineSettings(templates=(TEMPLATE,)))
    try:
        # A clock sequence has 14 bits, so two in a thousand of three draws meet by chance.
        assert equal(await draw(engine, DRAWS)) <= {"clock sequence"}
        # What a fork cannot change; it is said in docs/reference/ISOLATION.md.
        assert equal(await draw(engine, SHARED)) == {"hash seed", "layout", "heap"}
    finally:
        await engine.aclose()


async def test_two_kernels_of_one_sandbox_differ() -> None:
    engine = await Engine.start(EngineSettings(templates=(TEMPLATE,)))
    try:
        sandbox = await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE))
        answers = []
        for _ in range(2):
            events = await run_cell(sandbox, "", DRAWS + "\nimport os, signal")
            answers.append(json.loads(events[0]["text"] if "text" in events[0] else events[1]["text"]))
            await run_cell(sandbox, "", "os.kill(os.getpid(), signal.SIGKILL)")
        assert equal(answers) <= {"clock sequence"}
    finally:
        await engine.aclose()


@pytest.mark.timeout(300)
async def test_fresh_kernels_share_not_even_the_hash_seed() -> None:
    engine = await Engine.start(EngineSettings(templates=(TEMPLATE,), fresh_kernels=True))
    try:
        assert equal(await draw(engine, SHARED, count=2)) == set()
    finally:
        await engine.aclose()
