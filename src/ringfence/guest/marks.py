"""Files by which programs recognise an E2B sandbox, and learn which one they are in."""

import os
from contextlib import suppress
from pathlib import Path

from ringfence.guest.config import GuestConfig

DIRECTORY = Path("/run/e2b")


def write_marks(config: GuestConfig, directory: Path = DIRECTORY) -> None:
    """Write ``.E2B_SANDBOX``, ``.E2B_SANDBOX_ID`` and ``.E2B_TEMPLATE_ID``, readable by all.

    What is there already, from the template or a snapshot, is replaced, never followed or written into.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name, value in config.marks.items():
        path = directory / f".{name}"
        with suppress(FileNotFoundError):
            path.unlink()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)
