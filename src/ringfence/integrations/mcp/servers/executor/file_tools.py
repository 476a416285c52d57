"""Files: listed, read, written, brought in and out."""

import base64
import binascii
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import quote

from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, ContentBlock, EmbeddedResource, TextResourceContents

from ringfence.integrations.mcp.servers.executor import files
from ringfence.integrations.mcp.servers.executor.base import Tools
from ringfence.integrations.mcp.servers.executor.hostfiles import new_file
from ringfence.integrations.mcp.servers.executor.journal import MAX_FILE
from ringfence.integrations.mcp.servers.executor.notebook import notebook
from ringfence.integrations.mcp.servers.executor.output import size_text
from ringfence.integrations.mcp.servers.executor.reports import as_result
from ringfence.integrations.mcp.servers.executor.session import Session

MAX_DOWNLOAD = 16 * 1024**3
"""Bytes of one file. A sandbox that sends without end does not fill this computer's disk."""


class FileTools(Tools):
    """The tools for files."""

    async def list_files(
        self, session_id: str | None, path: str, pattern: str | None, depth: int, limit: int
    ) -> CallToolResult:
        """A directory of the sandbox."""
        session = await self.sessions.get(session_id, make=False)
        async with self._trouble(session):
            text, record = await files.list_entries(session.sandbox, path, pattern, depth, limit)
        return self._plain(text, record)

    async def read_file(self, session_id: str | None, path: str, offset: int, limit: int) -> CallToolResult:
        """A page of a file of the sandbox, or a picture."""
        session = await self.sessions.get(session_id, make=False)
        async with self._trouble(session):
            text, record, images = await files.read_page(session.sandbox, path, offset, limit)
        return as_result(text, record, structured=self._settings.mcp_structured, images=images)

    async def write_file(self, session_id: str | None, path: str, content: str) -> CallToolResult:
        """Write text to a file of the sandbox."""
        return await self._write(session_id, path, content.encode())

    async def upload_file(
        self,
        session_id: str | None,
        path: str | None,
        content: str | None,
        content_base64: str | None,
        local_path: str | None,
    ) -> CallToolResult:
        """Put a file into the sandbox, from one source; over HTTP, without one, say where to put it."""
        given = sum(source is not None for source in (content, content_base64, local_path))
        if given == 0 and self._files_url is not None and path is not None:
            return await self._upload_address(session_id, path)
        if given != 1:
            raise ToolError(f"Give exactly one of {self._sources()}.")
        if local_path is not None:
            return await self._upload(session_id, path, self._local(local_path))
        if path is None:
            raise ToolError("Give path: where the file goes in the sandbox.")
        return await self._write(session_id, path, _decoded(content, content_base64))

    def _sources(self) -> str:
        if self._files_url is None:
            return "content, content_base64 and local_path"
        return "content and content_base64 (or path alone, to get an address for a large file)"

    def _local(self, local_path: str) -> Path:
        self._refuse_local(local_path)
        return self._host.to_read(local_path)

    def _refuse_local(self, local_path: str | None) -> None:
        if local_path is not None and self._files_url is not None:
            raise ToolError(
                "This server is used over HTTP and does not touch files of the computer it runs on: omit "
                "local_path to get an address for the file."
            )

    async def _upload_address(self, session_id: str | None, path: str) -> CallToolResult:
        session = await self.sessions.get(session_id)
        url = self._address(session, path)
        text = (
            f"PUT the file's content to {url} with the same Authorization header as this connection's, for "
            f"example: curl -T FILE -H \"Authorization: Bearer $TOKEN\" '{url}'"
        )
        return self._written(session, text, {"upload_url": url, "method": "PUT"})

    def _address(self, session: Session, path: str) -> str:
        absolute = PurePosixPath("/home/user") / path
        return f"{self._files_url}/{session.handle}{quote(str(absolute))}"

    async def _upload(self, session_id: str | None, path: str | None, source: Path) -> CallToolResult:
        session = await self.sessions.get(session_id)
        self._check_residency(session, source)
        with source.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            kept = file.read() if size <= MAX_FILE else None
            file.seek(0)
            return await self._put(session, path or source.name, file, size, kept)

    def _check_residency(self, session: Session, source: Path) -> None:
        """Files that must stay go to no cloud, and neither does their session when it is rebuilt."""
        policy = self.sessions.sandboxes.backends.policy()
        if policy is None or not policy.keeps(source):
            return
        if session.backend.name == "e2b":
            raise ToolError(
                f"{source.name} must not leave the operator's machines, and this session is on "
                f"{session.backend.describe()}. create_session(resident=true) makes one that can have it."
            )
        session.journal.keep_here()

    async def _write(self, session_id: str | None, path: str, data: bytes) -> CallToolResult:
        return await self._put(await self.sessions.get(session_id), path, data, len(data), data)

    async def _put(
        self, session: Session, path: str, data: Any, size: int, kept: bytes | None
    ) -> CallToolResult:
        async with self._trouble(session):
            written = await session.sandbox.files.write(path, data)
            await session.watch.look(session.sandbox)
        session.journal.add_file(written.path, kept, size)
        session.usage.uploaded += size
        record = {"path": written.path, "bytes": size}
        return self._written(session, f"{written.path} written ({size_text(size)}).", record)

    async def download_file(
        self, session_id: str | None, path: str, local_path: str | None, overwrite: bool
    ) -> CallToolResult:
        """Bring a file out of the sandbox: to a file of the host, as content, or by an address."""
        self._refuse_local(local_path)
        target = self._host.to_write(local_path, overwrite=overwrite) if local_path is not None else None
        session = await self.sessions.get(session_id, make=False)
        async with self._trouble(session):
            info = await session.sandbox.files.get_info(path)
            record: dict[str, Any] = {"path": info.path, "bytes": info.size}
            if target is None:
                return await self._content(session, info.path, info.size, record)
            size = await self._save(session, info.path, target, overwrite)
            session.usage.downloaded += size
        name = PurePosixPath(info.path).name
        return self._plain(
            f"{name} saved as {target} ({size_text(size)}).",
            record | {"local_path": str(target), "bytes": size},
        )

    async def _content(
        self, session: Session, path: str, size: int, record: dict[str, Any]
    ) -> CallToolResult:
        if self._files_url is not None:
            record = record | {"download_url": self._address(session, path)}
            if size > files.MAX_BLOB:
                text = (
                    f"{path} ({size_text(size)}) is too large for an answer: GET {record['download_url']} "
                    "with the same Authorization header as this connection's."
                )
                return self._plain(text, record)
        content = await files.as_content(session.sandbox, path, size)
        session.usage.downloaded += size
        text = f"{path} ({size_text(size)})"
        return as_result(text, record, structured=self._settings.mcp_structured, extra=content)

    async def _save(self, session: Session, path: str, target: Path, overwrite: bool) -> int:
        size = 0
        with self._target(target, overwrite) as file:
            async with await session.sandbox.files.read(path, format="stream") as chunks:
                async for chunk in chunks:
                    size += file.write(chunk)
                    if size > MAX_DOWNLOAD:
                        raise ToolError(f"{path} is larger than {size_text(MAX_DOWNLOAD)}.")
        return size

    @contextlib.contextmanager
    def _target(self, target: Path, overwrite: bool) -> Iterator[BinaryIO]:
        try:
            with new_file(target, overwrite=overwrite) as file:
                yield file
        except FileExistsError as error:
            raise ToolError(
                f"{target} exists; give another name, or overwrite=true to replace it."
            ) from error
        except OSError as error:
            raise ToolError(f"{target} cannot be written: {error.strerror}") from error

    async def export_notebook(
        self, session_id: str | None, path: str | None, local_path: str | None, overwrite: bool
    ) -> CallToolResult:
        """The session as a notebook: into the sandbox, to a file of the host; if it was lost, as content."""
        self._refuse_local(local_path)
        handle, journal = await self.sessions.journal_of(session_id)
        data = notebook(journal, self.sessions.sandboxes.python())
        count = sum(1 for _ in journal.cells())
        record: dict[str, Any] = {"cells": count, "bytes": len(data), "session_id": handle}
        text = f"{count} cells as a notebook ({size_text(len(data))})"
        if local_path is not None:
            target = self._host.to_write(local_path, overwrite=overwrite)
            with self._target(target, overwrite) as file:
                file.write(data)
            return self._plain(f"{text}, saved as {target}.", record | {"local_path": str(target)})
        session = self.sessions.live(handle)
        if session is None:
            return self._notebook_content(text, data, record)
        async with self._trouble(session):
            written = await session.sandbox.files.write(path or "session.ipynb", data)
            await session.watch.look(session.sandbox)
        record["path"] = written.path
        if self._files_url is not None:
            record["download_url"] = self._address(session, written.path)
            text += f" (GET {record['download_url']})"
        return self._plain(f"{text}, written to {written.path}; download_file brings it out.", record)

    def _notebook_content(self, text: str, data: bytes, record: dict[str, Any]) -> CallToolResult:
        if len(data) > files.MAX_BLOB:
            raise ToolError(
                f"The session was lost and its notebook ({size_text(len(data))}) is too large for an answer; "
                "give "
                'local_path, or rebuild the session with on_loss="replay" first.'
            )
        contents = TextResourceContents(
            uri="sandbox:///home/user/session.ipynb", mime_type="application/x-ipynb+json", text=data.decode()
        )
        extra: list[ContentBlock] = [EmbeddedResource(resource=contents)]
        note = f"{text}. The session itself was lost, so it comes as content."
        return as_result(note, record, structured=self._settings.mcp_structured, extra=extra)


def _decoded(content: str | None, content_base64: str | None) -> bytes:
    if content is not None:
        return content.encode()
    try:
        return base64.b64decode(content_base64 or "", validate=True)
    except binascii.Error as error:
        raise ToolError(f"content_base64 is not base64: {error}") from error
