"""Watching a directory with inotify, without a library and without a thread."""

import asyncio
import ctypes
import errno
import os
import posixpath
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from ringfence.guest.connect import Message
from ringfence.guest.envd.entries import Entries
from ringfence.guest.envd.paths import printable

_LIBC = ctypes.CDLL(None, use_errno=True)

_MODIFY = 0x2
_ATTRIB = 0x4
_MOVED_FROM = 0x40
_MOVED_TO = 0x80
_CREATE = 0x100
_DELETE = 0x200
_DELETE_SELF = 0x400
_MOVE_SELF = 0x800
_OVERFLOW = 0x4000
_IGNORED = 0x8000
_ONLY_DIRECTORY = 0x01000000
_DO_NOT_FOLLOW = 0x02000000
_IS_DIRECTORY = 0x40000000

_CHANGES = _MODIFY | _ATTRIB | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
_WATCHED = _CHANGES | _DELETE_SELF | _MOVE_SELF
_TYPES = (
    (_CREATE | _MOVED_TO, "EVENT_TYPE_CREATE"),
    (_MOVED_FROM | _MOVE_SELF, "EVENT_TYPE_RENAME"),
    (_ATTRIB, "EVENT_TYPE_CHMOD"),
    (_MODIFY, "EVENT_TYPE_WRITE"),
    (_DELETE | _DELETE_SELF, "EVENT_TYPE_REMOVE"),
)
_DESCRIBED = {"EVENT_TYPE_CREATE", "EVENT_TYPE_CHMOD", "EVENT_TYPE_WRITE"}

_EVENT = struct.Struct("iIII")
_READ_BYTES = 64 * 1024
_O_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK

MAX_PENDING = 10_000
"""Events that wait to be fetched; more and the watcher has failed, as when the kernel's queue overflows."""

MAX_DIRECTORIES = 8192
"""Directories of one recursive watcher."""


class WatchLimitError(Exception):
    """There are more directories, or more watches, than may be watched."""


class Watcher:
    """Watches one directory, with `recursive` also those below, including new ones.

    Events are ``FilesystemEvent`` messages; names are relative to the directory.
    """

    def __init__(self, path: str, entries: Entries, *, recursive: bool, describe: bool) -> None:
        """Begin to watch `path`, a directory. `describe`: events of files that exist get their ``entry``.

        Raises `OSError`, `WatchLimitError`.
        """
        self._root = path
        self._entries = entries if describe else None
        self._recursive = recursive
        self._directories: dict[int, str] = {}
        self._announced: set[str] = set()
        self._pending: deque[Message] = deque()
        self._overflown = False
        self._notify: Callable[[], None] | None = None
        self._fd = _LIBC.inotify_init1(_O_FLAGS)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        try:
            self._add("", _WATCHED | _ONLY_DIRECTORY)
            if recursive:
                self._add_below("", announce=False)
        except BaseException:
            os.close(self._fd)
            raise
        asyncio.get_running_loop().add_reader(self._fd, self.drain)

    def close(self) -> None:
        """Stop watching."""
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    @property
    def overflown(self) -> bool:
        """Whether events were lost because they came faster than they were fetched."""
        return self._overflown

    def on_events(self, notify: Callable[[], None]) -> None:
        """Call `notify` whenever there is something to `take`."""
        self._notify = notify

    def take(self) -> list[Message]:
        """All events up to now, including those the kernel still holds."""
        self.drain()
        events = list(self._pending)
        self._pending.clear()
        return events

    def drain(self) -> None:
        """Read what the kernel has."""
        while True:
            try:
                data = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                break
            position = 0
            while position < len(data):
                watch, mask, _, length = _EVENT.unpack_from(data, position)
                name = data[position + _EVENT.size : position + _EVENT.size + length].rstrip(b"\0")
                position += _EVENT.size + length
                self._handle(watch, mask, os.fsdecode(name))
        if self._pending and self._notify is not None:
            self._notify()

    def _add(self, directory: str, mask: int) -> None:
        if len(self._directories) >= MAX_DIRECTORIES:
            raise WatchLimitError(f"more than {MAX_DIRECTORIES} directories to watch")
        path = os.fsencode(posixpath.join(self._root, directory))
        watch = _LIBC.inotify_add_watch(self._fd, path, ctypes.c_uint32(mask))
        if watch < 0:
            number = ctypes.get_errno()
            if number == errno.ENOSPC:
                raise WatchLimitError("the limit of inotify watches is reached")
            raise OSError(number, os.strerror(number))
        self._directories[watch] = directory

    def _add_below(self, directory: str, *, announce: bool) -> None:
        """Watch all below `directory`. With `announce`, tell of what is there: it came before the watch."""
        todo = [directory]
        while todo:
            current = todo.pop()
            try:
                with os.scandir(posixpath.join(self._root, current)) as found:
                    children = sorted((entry.name, *_kind(entry, sized=announce)) for entry in found)
            except OSError:
                continue  # gone, or not readable
            for name, is_directory, written in children:
                child = posixpath.join(current, name)
                if announce and len(self._announced) < MAX_PENDING:
                    self._announced.add(child)
                    self._emit(child, "EVENT_TYPE_CREATE")
                    if written:
                        self._emit(child, "EVENT_TYPE_WRITE")
                if is_directory and self._watch_child(child):
                    todo.append(child)

    def _watch_child(self, directory: str) -> bool:
        try:
            self._add(directory, _CHANGES | _DELETE_SELF | _ONLY_DIRECTORY | _DO_NOT_FOLLOW)
        except OSError:
            return False
        return True

    def _handle(self, watch: int, mask: int, name: str) -> None:
        if mask & _OVERFLOW:
            self._overflown = True
            return
        directory = self._directories.get(watch)
        if directory is None:
            return
        if mask & _IGNORED:
            del self._directories[watch]
            return
        if not name and directory:
            return  # of a directory below: its parent tells the same
        path = posixpath.join(directory, name) if name else "."
        if mask & _CREATE and path in self._announced:
            self._announced.discard(path)
            return
        if mask & (_DELETE | _MOVED_FROM):
            self._announced.discard(path)
        for bits, kind in _TYPES:
            if mask & bits:
                self._emit(path, kind)
        if self._recursive and mask & _IS_DIRECTORY and mask & (_CREATE | _MOVED_TO):
            self._follow(path)

    def _follow(self, directory: str) -> None:
        try:
            if self._watch_child(directory):
                self._add_below(directory, announce=True)
        except WatchLimitError:
            self._overflown = True

    def _emit(self, path: str, kind: str) -> None:
        if len(self._pending) >= MAX_PENDING:
            self._overflown = True
            return
        event: Message = {"name": printable(path), "type": kind}
        if self._entries is not None and kind in _DESCRIBED:
            with suppress(OSError):  # gone meanwhile
                event["entry"] = self._entries.describe(posixpath.join(self._root, path))
        self._pending.append(event)


def _kind(entry: "os.DirEntry[str]", *, sized: bool) -> tuple[bool, bool]:
    """Whether it is a directory, and, if `sized`, whether it is a file with something in it."""
    with suppress(OSError):
        if sized and entry.is_file(follow_symlinks=False):
            return False, entry.stat(follow_symlinks=False).st_size > 0
    return entry.is_dir(follow_symlinks=False), False
