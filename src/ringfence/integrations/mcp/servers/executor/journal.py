"""The journal of a session: what was run and which files were put into it, so that it can be made again.

It is kept by this server, not by the sandbox, and so outlives it; with a directory (`JournalFile`) it
outlives this server too. It is bounded: what is not kept is counted, and told when the session is rebuilt.
"""

import base64
import binascii
import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ringfence.core.placement import Wish

_log = logging.getLogger(__name__)

MAX_ENTRIES = 1000
MAX_FILE = 8 * 1024 * 1024
MAX_FILES_TOTAL = 48 * 1024 * 1024
MAX_OUTPUTS_TOTAL = 32 * 1024 * 1024
_MAX_CODE_TOTAL = 16 * 1024 * 1024

Kind = Literal["cell", "command", "file", "install"]
OnLoss = Literal["report", "replay"]


@dataclass
class Entry:
    """One thing that was done in the session.

    text: the cell's source, the command, the file's path, or the packages (one a line).
    status: how it ended; what did not end well by itself (``lost``, ``timeout``, …) is not done again.
    data: a file's content in base64; None for other kinds and for files too large to keep.
    outputs: a cell's outputs as in a notebook.
    """

    kind: Kind
    text: str
    status: str = "ok"
    data: str | None = None
    size: int = 0
    cwd: str | None = None
    exec_timeout: float = 60
    execution_count: int | None = None
    outputs: list[dict[str, Any]] = field(default_factory=list)
    ends_python: bool = False

    def repeats(self) -> bool:
        """Whether a rebuilding does it again."""
        return self.status in ("ok", "error") and not self.ends_python


class Journal:
    """The entries of one session, oldest first. `missing` counts those beyond the bounds.

    wish: what was asked of the session; a rebuilt one is placed by it again.
    """

    def __init__(
        self,
        envs: Mapping[str, str] | None = None,
        on_loss: OnLoss = "report",
        wish: Wish | None = None,
    ) -> None:
        self.envs = dict(envs or {})
        self.on_loss: OnLoss = on_loss
        self.wish = wish or Wish()
        self.entries: list[Entry] = []
        self.missing = 0
        self.file: JournalFile | None = None
        self._code = self._files = self._outputs = 0

    def about(self) -> dict[str, Any]:
        """What a file of it begins with."""
        return {"envs": self.envs, "on_loss": self.on_loss, "wish": dataclasses.asdict(self.wish)}

    def keep_here(self) -> None:
        """From now on the session has data that must stay."""
        if self.wish.resident:
            return
        self.wish = dataclasses.replace(self.wish, resident=True)
        if (file := self.file) is not None:
            self.file = None
            self.keep_in(file)

    def keep_in(self, file: "JournalFile") -> None:
        """From now on it is on disk too. A full disk costs the journal there, never the call."""
        try:
            file.start(self.about(), self.entries)
        except OSError as error:
            _log.warning("the session's journal cannot be written: %s", error)
            file.remove()
        else:
            self.file = file

    def add_cell(
        self,
        code: str,
        status: str,
        *,
        exec_timeout: float,
        execution_count: int | None,
        outputs: list[dict[str, Any]],
        ends_python: bool,
    ) -> None:
        """A cell has ended."""
        size = len(json.dumps(outputs, ensure_ascii=False))
        if self._outputs + size > MAX_OUTPUTS_TOTAL:
            outputs = [_note("the output is not kept: the session's outputs are too large")]
        else:
            self._outputs += size
        entry = Entry(
            "cell",
            code,
            status,
            exec_timeout=exec_timeout,
            execution_count=execution_count,
            outputs=outputs,
            ends_python=ends_python,
        )
        self._add(entry)

    def add_command(self, command: str, cwd: str | None, status: str, exec_timeout: float) -> None:
        """A shell command has ended."""
        self._add(Entry("command", command, status, cwd=cwd, exec_timeout=exec_timeout))

    def add_packages(self, packages: list[str]) -> None:
        """Packages were installed."""
        self._add(Entry("install", "\n".join(packages)))

    def add_file(self, path: str, data: bytes | None, size: int) -> None:
        """A file was put in. Only small ones are kept; of the others it is known that they were there."""
        kept = None
        if data is not None and len(data) <= MAX_FILE and self._files + len(data) <= MAX_FILES_TOTAL:
            self._files += len(data)
            kept = base64.b64encode(data).decode()
        self._add(Entry("file", path, data=kept, size=size))

    def _add(self, entry: Entry) -> None:
        if len(self.entries) >= MAX_ENTRIES or self._code + len(entry.text) > _MAX_CODE_TOTAL:
            self.missing += 1
            return
        self._code += len(entry.text)
        self.entries.append(entry)
        if self.file is not None:
            self.file.append(dataclasses.asdict(entry))

    def cells(self) -> Iterator[Entry]:
        """The cells, oldest first."""
        return (entry for entry in self.entries if entry.kind == "cell")

    def copy(self) -> "Journal":
        """A journal that goes on independently; for a fork."""
        other = Journal(self.envs, self.on_loss, self.wish)
        other.entries = list(self.entries)
        other.missing = self.missing
        other._code, other._files, other._outputs = self._code, self._files, self._outputs
        return other

    def summary(self) -> str:
        """What was in the session, in a few words: ``3 cells, 1 command, 2 files``."""
        counts = {"cell": 0, "command": 0, "file": 0, "install": 0}
        for entry in self.entries:
            counts[entry.kind] += 1
        names = {"cell": "cell", "command": "command", "file": "uploaded file", "install": "installation"}
        parts = [f"{n} {names[kind]}{'' if n == 1 else 's'}" for kind, n in counts.items() if n]
        return ", ".join(parts) or "nothing"

    def decode(self, entry: Entry) -> bytes | None:
        """A kept file's content."""
        try:
            return base64.b64decode(entry.data) if entry.data is not None else None
        except binascii.Error:
            return None


def _note(text: str) -> dict[str, Any]:
    return {"output_type": "stream", "name": "stderr", "text": f"[{text}]\n"}


class JournalFile:
    """A journal on disk: JSON lines in a file that only this user can read, named by a digest of the handle.

    The first line is about the session, each other one is an entry.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def start(self, about: dict[str, Any], entries: list[Entry]) -> None:
        """Write the file anew."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            for line in (about, *(dataclasses.asdict(entry) for entry in entries)):
                file.write(_line(line))

    def append(self, entry: dict[str, Any]) -> None:
        """Add a line, to a journal that was not removed meanwhile. A full disk costs the line, never the
        call.
        """
        try:
            with open(os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW), "wb") as file:
                file.write(_line(entry))
        except FileNotFoundError:
            _log.info("the journal %s is gone", self._path)
        except OSError as error:
            _log.warning("the journal %s cannot be written: %s", self._path, error)

    def read(self) -> Journal | None:
        """The journal that is there; None when there is none. Lines that were not written whole are counted
        as missing.
        """
        try:
            lines = [line for line in self._path.read_bytes().split(b"\n") if line]
            about = json.loads(lines[0])
        except (OSError, ValueError, IndexError):
            return None
        try:
            wish = Wish(**about.get("wish", {}))
        except TypeError:
            return None
        journal = Journal(about.get("envs"), about.get("on_loss", "report"), wish)
        for line in lines[1:]:
            try:
                journal._add(Entry(**json.loads(line)))
            except (ValueError, TypeError):
                journal.missing += 1
        journal.file = self
        return journal

    def remove(self) -> None:
        """The session was closed: nothing of it is kept."""
        self._path.unlink(missing_ok=True)


def _line(record: dict[str, Any]) -> bytes:
    """With a line end before it too: what a full disk cut off the line before is not this one's loss."""
    return b"\n" + json.dumps(record).encode() + b"\n"


class JournalStore:
    """Where the journals of one caller are: in `directory`, or nowhere (None)."""

    def __init__(self, directory: Path | None, caller: str) -> None:
        self._directory = None if directory is None else directory / _digest(caller)

    def open(self, handle: str) -> JournalFile | None:
        """The file of the session `handle`."""
        if self._directory is None:
            return None
        return JournalFile(self._directory / f"{_digest(handle)}.jsonl")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
