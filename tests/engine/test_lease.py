"""Leases on a loop whose clock the test moves."""

import asyncio
import time

import pytest

from ringfence.engine.lease import Leases


class Expired(list[str]):
    """Ids in the order in which their leases ended."""


@pytest.fixture
def expired() -> Expired:
    return Expired()


@pytest.fixture
def leases(expired: Expired) -> Leases:
    return Leases(expired.append)


async def until(expired: Expired, count: int) -> None:
    while len(expired) < count:
        await asyncio.sleep(0.001)


async def test_expire_in_order_of_deadline(leases: Leases, expired: Expired) -> None:
    now = time.time()
    leases.set("late", now + 0.03)
    leases.set("early", now + 0.01)
    await until(expired, 2)
    assert expired == ["early", "late"]
    assert len(leases) == 0


async def test_a_deadline_in_the_past_expires_at_once(leases: Leases, expired: Expired) -> None:
    leases.set("a", time.time() - 5)
    await until(expired, 1)
    assert leases.get("a") is None


async def test_moving_a_deadline_forgets_the_old_one(leases: Leases, expired: Expired) -> None:
    leases.set("moved", time.time() + 0.005)
    leases.set("moved", time.time() + 3600)
    leases.set("other", time.time() + 0.01)
    await until(expired, 1)
    assert expired == ["other"]
    leases.set("moved", time.time())
    await until(expired, 2)
    assert expired == ["other", "moved"]


async def test_extend_never_shortens(leases: Leases) -> None:
    deadline = time.time() + 100
    leases.set("a", deadline)
    assert leases.extend("a", deadline - 50) == deadline
    assert leases.get("a") == deadline
    assert leases.extend("a", deadline + 50) == deadline + 50
    leases.close()


async def test_a_cancelled_lease_does_not_expire(leases: Leases, expired: Expired) -> None:
    leases.set("gone", time.time() + 0.005)
    leases.cancel("gone")
    leases.cancel("never was")
    leases.set("stays", time.time() + 0.01)
    await until(expired, 1)
    assert expired == ["stays"]


async def test_close_forgets_everything(leases: Leases, expired: Expired) -> None:
    leases.set("a", time.time() + 0.005)
    leases.close()
    await asyncio.sleep(0.02)
    assert expired == []


async def test_setting_the_clock_changes_nothing(
    leases: Leases, expired: Expired, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases.set("a", time.time() + 3600)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 7200)
    leases.set("b", time.time() + 0.005)
    await until(expired, 1)
    assert expired == ["b"]
    leases.close()
