"""Files of a sandbox for a model: listings, pages of text, pictures as pictures."""

import base64
import fnmatch
import mimetypes
import re
import shlex
from typing import Any

from e2b import CommandExitException
from e2b.sandbox.filesystem.filesystem import EntryInfo, FileType
from e2b_code_interpreter import AsyncSandbox
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import BlobResourceContents, ContentBlock, EmbeddedResource, ImageContent

from ringfence.integrations.mcp.servers.executor.images import MAX_BYTES
from ringfence.integrations.mcp.servers.executor.output import size_text

MAX_PAGE_CHARS = 20_000
MAX_BLOB = 480 * 1024
_MAX_LINE = 2000
_IMAGE_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")


async def list_entries(
    sandbox: AsyncSandbox, path: str, pattern: str | None, depth: int, limit: int
) -> tuple[str, dict[str, Any]]:
    """A directory's entries as text and as data. `pattern` is a shell pattern on the name; `limit` bounds
    the entries.
    """
    entries: list[EntryInfo] = await sandbox.files.list(path, depth=depth)
    wanted = [entry for entry in entries if pattern is None or fnmatch.fnmatch(entry.name, pattern)]
    shown = wanted[:limit]
    record: dict[str, Any] = {
        "path": path,
        "entries": [
            {
                "path": entry.path,
                "type": entry.type.value if entry.type else "unknown",
                "size": entry.size,
                "modified": entry.modified_time.isoformat(timespec="seconds"),
            }
            for entry in shown
        ],
        "total": len(wanted),
    }
    lines = [_line(entry) for entry in shown]
    if len(wanted) > len(shown):
        lines.append(
            f"… and {len(wanted) - len(shown)} more; give a pattern, a smaller depth or a larger limit"
        )
    return "\n".join(lines) or f"{path} has no {'such ' if pattern else ''}entries", record


def _line(entry: EntryInfo) -> str:
    kind = "/" if entry.type == FileType.DIR else ""
    size = "" if entry.type == FileType.DIR else f"  {size_text(entry.size)}"
    return f"{entry.path}{kind}{size}  {entry.modified_time:%Y-%m-%d %H:%M:%S}"


async def read_page(
    sandbox: AsyncSandbox, path: str, offset: int, limit: int
) -> tuple[str, dict[str, Any], list[ImageContent]]:
    """A page of a text file, from line `offset` (the first is 1), at most `limit` lines; or a picture."""
    info = await sandbox.files.get_info(path)
    if info.type == FileType.DIR:
        raise ToolError(f"{path} is a directory; use list_files.")
    path = info.path
    mime_type = mimetypes.guess_type(path)[0]
    record: dict[str, Any] = {"path": path, "bytes": info.size}
    if mime_type in _IMAGE_TYPES:
        return await _picture(sandbox, path, mime_type, info.size, record)
    text, more = await _lines(sandbox, path, offset, limit)
    count = text.count("\n") + (not text.endswith("\n") and bool(text))
    record |= {"offset": offset, "lines": count, "text": text}
    if more:
        record["next_offset"] = offset + count
    rest = f"\n[lines {offset}–{offset + count - 1}; next page: offset={offset + count}]" if more else ""
    return (text + rest) or "(the file is empty from here on)", record, []


async def _picture(
    sandbox: AsyncSandbox, path: str, mime_type: str, size: int, record: dict[str, Any]
) -> tuple[str, dict[str, Any], list[ImageContent]]:
    if size > MAX_BYTES:
        raise ToolError(
            f"{path} is a picture of {size_text(size)}, too large to show (limit {size_text(MAX_BYTES)}). "
            f"Make it smaller with Pillow in execute_code, or use download_file."
        )
    data = base64.b64encode(await read_bytes(sandbox, path, MAX_BYTES)).decode()
    return f"{path}: {mime_type}, {size_text(size)}", record, [ImageContent(data=data, mime_type=mime_type)]


async def read_bytes(sandbox: AsyncSandbox, path: str, limit: int) -> bytes:
    """A file of at most `limit` bytes; a `ToolError` if it has more, whatever size it was said to have."""
    data = bytearray()
    async with await sandbox.files.read(path, format="stream") as chunks:
        async for chunk in chunks:
            data += chunk
            if len(data) > limit:
                raise ToolError(f"{path} has more than {size_text(limit)}; it does not fit in an answer.")
    return bytes(data)


async def _lines(sandbox: AsyncSandbox, path: str, offset: int, limit: int) -> tuple[str, bool]:
    """Lines `offset` … of a file, and whether there are more. The sandbox cuts the page, so any size of
    file will do.
    """
    last = offset + limit - 1
    budget = MAX_PAGE_CHARS * 4 + 4
    quoted = shlex.quote(path)
    # One line more than asked for shows whether there are more; `head -c` bounds what crosses the connection.
    page = (
        f"sed -n '{offset},{last + 1}p;{last + 1}q' -- {quoted} | cut -b1-{_MAX_LINE * 4} | head -c {budget}"
    )
    is_text = f"! [ -s {quoted} ] || grep -qI '' -- {quoted}"
    try:
        raw = await sandbox.commands.run(f"if {is_text}; then {page}; else exit 65; fi; exit 0")
    except CommandExitException as error:
        if error.exit_code != 65:
            raise ToolError(f"{path} cannot be read: {error.stderr.strip()[:300]}") from error
        raise ToolError(
            f"{path} is not a text file; use download_file, or look at it in execute_code."
        ) from error
    return _cut(raw.stdout, limit)


def _cut(text: str, limit: int) -> tuple[str, bool]:
    # Only "\n" ends a line, as for sed: `splitlines` sees more, and pages would not fit together.
    lines = [line for line in re.split(r"(?<=\n)", text) if line]
    more = len(lines) > limit
    kept: list[str] = []
    size = 0
    for line in lines[:limit]:
        if len(line) > _MAX_LINE:
            line = f"{line[:_MAX_LINE]}… (line cut)\n"
        if size + len(line) > MAX_PAGE_CHARS:
            more = True
            break
        kept.append(line)
        size += len(line)
    return "".join(kept), more


async def as_content(sandbox: AsyncSandbox, path: str, size: int) -> list[ContentBlock]:
    """A file as MCP content: a picture as a picture, anything else as an embedded resource."""
    mime_type = mimetypes.guess_type(path)[0] or "application/octet-stream"
    if size > MAX_BLOB:
        raise ToolError(
            f"{path} has {size_text(size)}; more than {size_text(MAX_BLOB)} does not fit in an answer. "
            f"Give local_path to write it to a file."
        )
    data = base64.b64encode(await read_bytes(sandbox, path, MAX_BLOB)).decode()
    if mime_type in _IMAGE_TYPES and size <= MAX_BYTES:
        return [ImageContent(data=data, mime_type=mime_type)]
    contents = BlobResourceContents(uri=f"sandbox://{path}", mime_type=mime_type, blob=data)
    return [EmbeddedResource(resource=contents)]
