"""An image is used for what it was made from, and for nothing else."""

import os
from pathlib import Path
from typing import Any

import pytest

from ringfence.engine.gvisor import identity
from ringfence.engine.gvisor.identity import image_key


class _Inputs:
    """What the key is made from; `key` after a test has changed something."""

    def __init__(self, directory: Path) -> None:
        self.program = directory / "runsc"
        self.program.write_text("program")
        self.lower = directory / "usr"
        (self.lower / "lib" / "x86_64-linux-gnu").mkdir(parents=True)
        self.gvisor: dict[str, Any] = {
            "path": str(self.program), "platform": "ptrace", "flags": ["network"], "image": None, "room": 0
        }  # fmt: skip
        self.description: dict[str, Any] = {
            "layers": [{"target": "/usr", "lowers": [str(self.lower)]}],
            "python": "/usr/local/bin/python3", "preload": ["json"], "env": {},
        }  # fmt: skip
        self.frame: dict[str, Any] = {
            "snapshots": [], "hostname": "sandbox", "limits": {"disk_mb": 1024, "memory_mb": 512}
        }  # fmt: skip

    def key(self) -> str:
        return image_key(self.gvisor, self.description, self.frame)


@pytest.fixture
def inputs(tmp_path: Path) -> _Inputs:
    return _Inputs(tmp_path)


def test_the_same_is_the_same(inputs: _Inputs) -> None:
    assert inputs.key() == inputs.key()


def test_limits_that_are_not_in_an_image_do_not_matter(inputs: _Inputs) -> None:
    before = inputs.key()
    inputs.frame["limits"]["memory_mb"] = 4096
    assert inputs.key() == before


def test_everything_that_is_in_an_image_matters(inputs: _Inputs) -> None:
    def replace_a_library() -> None:
        place = inputs.lower / "lib" / "x86_64-linux-gnu"
        os.utime(place, ns=(0, place.stat().st_mtime_ns + 1))

    changes = [
        lambda: inputs.gvisor.update(platform="systrap"),
        lambda: inputs.gvisor.update(flags=["network", "more"]),
        lambda: inputs.program.write_text("another program"),
        lambda: inputs.description.update(preload=["json", "re"]),
        lambda: inputs.description.update(env={"A": "1"}),
        lambda: inputs.frame.update(snapshots=["layer"]),
        lambda: inputs.frame.update(hostname="another"),
        lambda: inputs.frame["limits"].update(disk_mb=2048),
        replace_a_library,
    ]
    keys = [inputs.key()]
    for change in changes:
        change()
        keys.append(inputs.key())
    assert len(set(keys)) == len(keys)


def test_the_machine_and_our_own_code_matter(inputs: _Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [inputs.key()]
    monkeypatch.setattr(identity, "own_code", lambda: [["boot.py", 1, 1]])
    keys.append(inputs.key())
    monkeypatch.setattr(identity, "_processor", lambda: ["another"])
    keys.append(inputs.key())
    kernel = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*kernel[:2], "9.9.9", *kernel[3:])))
    keys.append(inputs.key())
    assert len(set(keys)) == len(keys)
