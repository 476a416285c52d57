"""What a tool call gave, in a form that a program can use."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mcp_types import BlobResourceContents, CallToolResult, EmbeddedResource, ImageContent, TextContent

from ringfence.integrations.mcp.meta import META_KEY


@dataclass(frozen=True)
class Blob:
    """Binary content of a result: a picture, or a file (then `uri` names it)."""

    mime_type: str
    data: bytes = field(repr=False)
    uri: str | None = None


@dataclass(frozen=True)
class ToolResult:
    """A tool's answer.

    text: everything the tool said, as text. images, files: its binary content.
    structured: its machine-readable record (for `python_executor`: status, stdout, result, error,
    session_state, …).
    is_error: the tool could not do its work. Code that raised an exception is not that; see `structured`.
    duration_s: seconds from the call to the answer.
    raw: the protocol's own result.
    """

    text: str
    images: tuple[Blob, ...]
    files: tuple[Blob, ...]
    structured: Mapping[str, Any]
    is_error: bool
    duration_s: float
    raw: CallToolResult = field(repr=False)

    @classmethod
    def of(cls, raw: CallToolResult, duration_s: float) -> "ToolResult":
        """Take the protocol's result apart."""
        texts = [block.text for block in raw.content if isinstance(block, TextContent)]
        images = [
            Blob(block.mime_type, base64.b64decode(block.data))
            for block in raw.content
            if isinstance(block, ImageContent)
        ]
        files = [
            Blob(
                block.resource.mime_type or "application/octet-stream",
                base64.b64decode(block.resource.blob),
                block.resource.uri,
            )
            for block in raw.content
            if isinstance(block, EmbeddedResource) and isinstance(block.resource, BlobResourceContents)
        ]
        record = (raw.meta or {}).get(META_KEY) or raw.structured_content or {}
        return cls("\n".join(texts), tuple(images), tuple(files), record, bool(raw.is_error), duration_s, raw)
