"""No key and no variable of the server is, or ever was, in the memory of what runs sandboxes' code."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from e2b_code_interpreter import Sandbox

if TYPE_CHECKING:
    from conftest import RunningServer

_CHUNK = 1 << 22
_OVERLAP = 256

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may read the memory of other processes")


def _regions(pid: int) -> list[tuple[int, int]]:
    regions = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, mode, *_ = line.split()
        if mode.startswith("rw") or "[" in line:
            start, end = (int(part, 16) for part in span.split("-"))
            regions.append((start, end))
    return regions


def found_in(pid: int, words: re.Pattern[bytes]) -> set[bytes]:
    """Those of the words that are anywhere in what a process could have written to."""
    found: set[bytes] = set()
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for start, end in _regions(pid):
            for offset in range(start, end, _CHUNK):
                try:
                    data = os.pread(memory.fileno(), min(_CHUNK + _OVERLAP, end - offset), offset)
                except (OSError, OverflowError):
                    continue  # vvar and its like
                found |= set(words.findall(data))
    return found


def _name(pid: int) -> str:
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return re.sub(r".*-m (\S+).*", r"\1", command)[:80]


def test_neither_launcher_nor_zygotes_nor_guests_hold_a_secret(
    launch: Callable[..., RunningServer], tmp_path: Path
) -> None:
    canary = "canary-" + secrets.token_hex(16)
    running = launch(tmp_path, templates="base", SOME_SECRET_OF_THE_HOST=canary)
    with Sandbox.create("base", **running.options) as sandbox:
        assert sandbox.run_code("6 * 7").text == "42"
        sandbox.commands.run("true")
        texts = [running.key, running.stranger, canary]
        words = re.compile(b"|".join(re.escape(text.encode()) for text in texts))
        family = running.descendants()
        names = {pid: _name(pid) for pid in family}
        assert any("zygote.guest" in name for name in names.values())
        assert len(family) >= 6, "launcher, egress, two zygotes, a guest, its nursery and kernel"
        leaks = {names[pid]: found for pid in family if (found := found_in(pid, words))}
        assert leaks == {}
        # The search does find: in the server itself they are.
        assert len(found_in(running.process.pid, words)) == len(texts)
    running.stop()
