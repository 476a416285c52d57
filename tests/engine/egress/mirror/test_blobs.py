"""Files on their way to the cache have so much room together."""

import os
from pathlib import Path
from typing import Any

from ringfence.engine.egress.mirror.blobs import Blob, Blobs


def opened(path: Path, number: int) -> Blob:
    return Blob(number, os.open(path / str(number), os.O_RDWR | os.O_CREAT), found=False)


async def test_what_has_no_room_is_not_written_down(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    blobs = Blobs(told.append, 100)
    first, second, third, fourth = (opened(tmp_path, number) for number in range(1, 5))
    blobs.expect(first, 60)
    blobs.expect(second, 60)
    assert second.descriptor is None
    assert told == [{"event": "blob-end", "number": 2, "whole": False}]
    await blobs.write(third, b"x" * 40)
    await blobs.write(third, b"x")
    assert third.descriptor is None, "it is longer than was said of it"
    await blobs.write(first, b"x" * 60)
    blobs.done(first, whole=True)
    for number in (2, 3):
        blobs.ended(number)
    blobs.expect(fourth, 60)
    assert fourth.descriptor is None, "the first one is not stored yet, and takes its room"
    blobs.ended(1)
    fifth = opened(tmp_path, 5)
    await blobs.write(fifth, b"x" * 100)
    assert fifth.written == 100
    blobs.done(fifth, whole=True)
    assert told[-1] == {"event": "blob-end", "number": 5, "whole": True}
