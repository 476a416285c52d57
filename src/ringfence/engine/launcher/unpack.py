"""Unpacking the layers of an image, each an archive from a stranger, into one directory.

It runs in a short-lived child that has given up the host before it reads the first byte: it is the root of a
user namespace of its own, holds two descriptors, the archive and the directory, and has the directory for its
root. So whatever an archive says, nothing outside of the directory can be named.
"""

import contextlib
import os
import posixpath
import resource
import shutil
import stat
import sys
import tarfile
import zlib  # noqa: F401 - tarfile imports it by name when it is too late for us
from dataclasses import dataclass, field
from typing import IO

from ringfence.engine.isolation import linux, userns

_MAX_BYTES = 32 << 30
_MAX_ENTRIES = 2_000_000
_MAX_MEMORY = 2 << 30
_CHUNK = 1 << 20
_MAX_WINDOW = 128 << 20
"""Bytes that a zstd frame may look back, which is memory: what ``zstd --ultra --long`` takes at most."""
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_NOBODY = 65534
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def load_decompressor(archive: int) -> None:
    """Import what the archive needs; to be called before the import's files are out of reach."""
    if os.pread(archive, 4, 0) == _ZSTD:
        with contextlib.suppress(ImportError):
            import zstandard  # noqa: F401


def _open_layer(raw: IO[bytes], head: bytes) -> tarfile.TarFile:
    if head == _ZSTD:
        zstandard = sys.modules.get("zstandard")
        if zstandard is None:
            raise ValueError(
                "a layer is compressed with zstd: install ringfence[images] on the server, or use gzip"
            )
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        return tarfile.open(fileobj=decompressor.stream_reader(raw, read_across_frames=True), mode="r|")
    return tarfile.open(fileobj=raw, mode="r|gz" if head[:2] == _GZIP else "r|")


def leave_the_host(userns_fd: int, directory_fd: int) -> None:
    """Become root of `userns_fd` with `directory_fd` as the root directory, and nothing else."""
    userns.enter(userns_fd, 0)
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o022)
    os.fchdir(directory_fd)
    os.chroot(".")
    os.chdir("/")


@dataclass
class Unpacker:
    """Applies one layer to the root directory. single_id: there is one id only, and it owns everything."""

    single_id: bool
    written: int = 0
    entries: int = 0
    _made: set[str] = field(default_factory=set)
    _times: list[tuple[str, float]] = field(default_factory=list)

    def apply(self, archive: int) -> None:
        """Apply the archive behind the descriptor. Raises OSError, tarfile.TarError, ValueError."""
        with os.fdopen(os.dup(archive), "rb") as raw, _open_layer(raw, os.pread(archive, 4, 0)) as layer:
            for member in layer:
                self._member(layer, member)
        for path, moment in reversed(self._times):
            with contextlib.suppress(OSError):
                os.utime(path, (moment, moment), follow_symlinks=False)

    def _member(self, layer: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        self.entries += 1
        self.written += max(0, member.size) if member.isreg() else 0
        if self.entries > _MAX_ENTRIES or self.written > _MAX_BYTES:
            raise ValueError(f"a layer has more than {_MAX_ENTRIES} entries or {_MAX_BYTES} bytes")
        path = _inside(member.name)
        parent, name = posixpath.split(path)
        if name == _OPAQUE:
            self._clear(parent)
        elif name.startswith(_WHITEOUT):
            hidden = name.removeprefix(_WHITEOUT)
            if hidden in ("", ".", ".."):
                raise ValueError(f"a layer hides {name!r}, which is no file's name")
            _remove(posixpath.join(parent, hidden))
        else:
            os.makedirs(parent, 0o755, exist_ok=True)
            self._made.add(path)
            self._make(layer, member, path)

    def _clear(self, directory: str) -> None:
        """Hide what lower layers have in `directory`; what this one has put there stays."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for name in os.listdir(directory):
                path = posixpath.join(directory, name)
                if path not in self._made:
                    _remove(path)

    def _make(self, layer: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        if member.isdir():
            if not _is_directory(path):
                _remove(path)
                os.mkdir(path, 0o700)
            self._finish(member, path)
            return
        if path == "/":
            return
        if member.islnk():
            source = _inside(member.linkname)
            if source != path:
                _remove(path)
                os.link(source, path, follow_symlinks=False)
            return
        _remove(path)
        if member.isreg():
            self._write(layer.extractfile(member), path)
        elif member.issym():
            os.symlink(member.linkname, path)
        elif member.isfifo():
            os.mkfifo(path, 0o600)
        else:
            return  # device nodes: a sandbox has its own /dev
        self._finish(member, path)

    @staticmethod
    def _write(source: IO[bytes] | None, path: str) -> None:
        with os.fdopen(os.open(path, _NEW_FILE, 0o600), "wb") as target:
            if source is not None:
                shutil.copyfileobj(source, target, _CHUNK)

    def _finish(self, member: tarfile.TarInfo, path: str) -> None:
        if not self.single_id:
            os.chown(path, _small(member.uid), _small(member.gid), follow_symlinks=False)
        if not member.issym():
            # Set-id bits are void inside and would not be on the host's disk.
            void = 0 if member.isdir() else stat.S_ISUID | stat.S_ISGID
            os.chmod(path, member.mode & 0o7777 & ~void)
        self._times.append((path, float(member.mtime)))


def add_users_and_places(single_id: bool, files: dict[str, str]) -> None:
    """What a sandbox needs and an image may lack: mount points, the user ``user``, `files` (by path)."""
    modes = {"/tmp": 0o1777, "/var/tmp": 0o1777, "/root": 0o700}  # noqa: S108 (of the image)
    for path in ("/dev", "/proc", "/sys", "/run", "/etc", "/home", "/root", "/var", "/tmp", "/var/tmp"):  # noqa: S108
        if not os.path.isdir(path):
            _remove(path)
            os.mkdir(path)
            os.chmod(path, modes.get(path, 0o755))
    for path, text in files.items():
        if not os.path.exists(path) or path == "/etc/resolv.conf":
            _remove(path)
            os.makedirs(posixpath.dirname(path), 0o755, exist_ok=True)
            _write_text(path, text)
    if os.path.exists("/bin/sh") and not os.path.lexists("/bin/bash"):
        # Every SDK runs commands by /bin/bash. Not a link: programs of many names go by the one they have.
        _write_text("/bin/bash", '#!/bin/sh\nexec /bin/sh "$@"\n')
        os.chmod("/bin/bash", 0o755)
    root = "root:x:0:0:root:/root:/bin/sh\n"
    uid = _add_line("/etc/passwd", "user", root, "user:x:{id}:{id}::/home/user:/bin/bash")
    gid = _add_line("/etc/group", "user", "root:x:0:\n", f"user:x:{uid}:")
    if not os.path.isdir("/home/user"):
        _remove("/home/user")
        os.mkdir("/home/user")
        os.chmod("/home/user", 0o755)
        if not single_id:
            os.chown("/home/user", uid, gid)


def _add_line(path: str, name: str, first: str, line: str) -> int:
    """Add `line` to a file like /etc/passwd unless it has `name`; the id that the name has then."""
    text = first
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="surrogateescape") as file:
        text = file.read(_CHUNK)
    rows = [row.split(":") for row in text.splitlines() if row.count(":") >= 2]
    for row in rows:
        if row[0] == name and row[2].isdigit():
            return int(row[2])
    used = {row[2] for row in rows}
    number = next(number for number in range(1000, _NOBODY) if str(number) not in used)
    filled = line.replace("{id}", str(number))
    _remove(path)
    _write_text(path, text + ("" if not text or text.endswith("\n") else "\n") + filled + "\n")
    return int(filled.split(":")[2])


def _write_text(path: str, text: str) -> None:
    with os.fdopen(os.open(path, _NEW_FILE, 0o644), "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
    os.chmod(path, 0o644)


def _inside(name: str) -> str:
    return posixpath.normpath("/" + name.lstrip("/"))


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def _remove(path: str) -> None:
    if path == "/":
        return
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if _is_directory(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)


def _small(number: int) -> int:
    return number if 0 <= number < _NOBODY else _NOBODY
