"""What a model is told about a cell: complete plain text first, then pictures; the same facts as data.

No `isError` for code that failed: that is a normal result. Whether `structuredContent` goes along is a
setting, because
clients differ in what they then drop.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from e2b_code_interpreter import Result
from mcp_types import CallToolResult, ContentBlock, ImageContent, TextContent

from ringfence.integrations.mcp.meta import META_KEY
from ringfence.integrations.mcp.servers.executor.cells import Cell
from ringfence.integrations.mcp.servers.executor.filewatch import Changes
from ringfence.integrations.mcp.servers.executor.images import Picture
from ringfence.integrations.mcp.servers.executor.output import Output, shorten, size_text
from ringfence.integrations.mcp.servers.executor.tracebacks import hint_for, trim_traceback

STREAM_LIMITS = {"stdout": 6000, "stderr": 2000}
_VALUE_LIMIT = 3000
_TRACEBACK_LIMIT = 3000
_DISPLAYS_LIMIT = 6000


@dataclass(frozen=True)
class Surroundings:
    """What is said about the place a cell ran in."""

    session_id: str
    backend: str
    isolation: str | None
    news: str = ""
    restarted: bool = False


@dataclass(frozen=True)
class Spill:
    """Where in the sandbox the whole output is, when it was cut here."""

    paths: Mapping[str, str]


def cell_record(
    cell: Cell, pictures: list[Picture], changes: Changes, spill: Spill, where: Surroundings
) -> dict[str, Any]:
    """Everything about a finished cell as JSON-able data, without empty parts and without base64."""
    record: dict[str, Any] = {"status": cell.status or "running"}
    for name, stream in (("stdout", cell.stdout), ("stderr", cell.stderr)):
        record |= stream_record(name, stream, spill)
    value, displays = _values(cell)
    record["result"] = value
    record["displays"] = displays
    record["error"] = _error_record(cell)
    record["hint"] = _hint(cell, where)
    record["images"] = [picture.describe() for picture in pictures]
    record["files"] = changes.as_dict()
    record["session_id"] = where.session_id
    record["session_state"] = cell.state
    record["session_note"] = " ".join(part for part in (where.news, cell.state_reason) if part)
    record["execution_id"] = cell.execution_id
    record["execution_count"] = cell.execution_count
    record["duration_s"] = round(cell.duration, 3)
    record["backend"] = where.backend
    record["isolation"] = where.isolation
    return {name: part for name, part in record.items() if part not in (None, "", [], {})}


def stream_record(name: str, stream: Output, spill: Spill) -> dict[str, Any]:
    text, missing = shorten(stream.text, STREAM_LIMITS[name])
    record: dict[str, Any] = {name: text}
    if missing or stream.total > len(stream.text):
        record[f"{name}_total_chars"] = stream.total
        if name in spill.paths:
            record[f"{name}_file"] = spill.paths[name]
    return record


def _values(cell: Cell) -> tuple[str | None, list[str]]:
    """The value of the last expression, and what else was displayed, as text."""
    value: str | None = None
    displays: list[str] = []
    room = _DISPLAYS_LIMIT
    for number, result in enumerate(cell.results):
        text = _text_of(result)
        if text is None:
            continue
        if result.is_main_result:
            value = shorten(text, _VALUE_LIMIT)[0]
        elif not (result.png or result.jpeg or result.svg):
            if room < 100:
                displays.append(
                    f"… what was displayed after this is left out ({len(cell.results) - number} results)"
                )
                break
            displays.append(shorten(text, min(room, _VALUE_LIMIT))[0])
            room -= len(displays[-1])
    return value, displays


def _text_of(result: Result) -> str | None:
    text: str | None = result.text or result.markdown or result.latex
    if text is None and result.html and not (result.png or result.jpeg):
        text = result.html
    if text is None and result.json is not None:
        text = str(result.json)
    return text


def _error_record(cell: Cell) -> dict[str, str] | None:
    if cell.error is None:
        return None
    traceback = shorten(trim_traceback(cell.error.traceback or ""), _TRACEBACK_LIMIT)[0]
    value = shorten(cell.error.value or "", 1000)[0]
    return {"name": cell.error.name, "value": value, "traceback": traceback}


def _hint(cell: Cell, where: Surroundings) -> str | None:
    if cell.status == "timeout":
        return (
            f"The code ran longer than timeout_s={cell.exec_timeout:g} and was interrupted. Give a larger "
            "timeout_s, do the work in smaller steps, or set background=true and ask with get_execution."
        )
    if cell.status is None:
        return (
            f"It goes on (until timeout_s={cell.exec_timeout:g}). get_execution with "
            f"execution_id={cell.execution_id} waits for it, interrupt_execution ends it."
        )
    if cell.status == "output_limit":
        return "The code wrote more than can be taken and was interrupted; write to a file instead."
    if cell.status == "lost":
        return (
            "Variables and files of the session are gone. execute_code with this session_id and "
            'on_loss="replay" '
            "rebuilds them by running the earlier cells again. If memory ran out, work in smaller pieces."
        )
    if cell.error is None:
        return None
    was_lost = where.restarted or cell.state == "reset"
    return hint_for(cell.error.name, cell.error.value or "", state_was_lost=was_lost)


def record_text(record: Mapping[str, Any]) -> str:
    """The record as plain text that is complete by itself."""
    parts: list[str] = []
    if note := record.get("session_note"):
        parts.append(f"note: {note}")
    parts += streams_text(record)
    parts += [f"display:\n{text}" for text in record.get("displays", ())]
    if value := record.get("result"):
        parts.append(f"result:\n{value}")
    if error := record.get("error"):
        headline = f"{error['name']}: {error['value']}"
        traceback = error["traceback"]
        parts.append(
            "error:\n"
            + (traceback if headline.split("\n")[0] in traceback else f"{headline}\n{traceback}".rstrip())
        )
    if record["status"] not in ("ok", "error"):
        parts.append(f"status: {_STATUS_TEXT.get(record['status'], record['status'])}")
    if hint := record.get("hint"):
        parts.append(f"hint: {hint}")
    parts += _images_text(record.get("images", ()))
    parts += _files_text(record.get("files", {}))
    if not any(name in record for name in ("stdout", "stderr", "displays", "result", "error", "images")):
        parts.insert(0, "(no output)")
    parts.append(_footer(record))
    return "\n\n".join(parts)


def streams_text(record: Mapping[str, Any]) -> list[str]:
    """What was written to standard output and standard error, and to which files what is too long went."""
    return [
        f"{name}:\n{text.rstrip()}{_where_rest(record, name)}"
        for name in ("stdout", "stderr")
        if (text := record.get(name))
    ]


_STATUS_TEXT = {
    "timeout": "interrupted at the execution timeout",
    "interrupted": "interrupted on request",
    "output_limit": "interrupted: too much output",
    "lost": "the sandbox ended while the code ran",
    "running": "still running",
}


def _where_rest(record: Mapping[str, Any], name: str) -> str:
    total = record.get(f"{name}_total_chars")
    if total is None:
        return ""
    path = record.get(f"{name}_file")
    rest = f"; all of it is in {path} (read_file)" if path else ""
    return f"\n[{name} was {total} characters{rest}]"


def _images_text(images: Any) -> list[str]:
    lines = []
    for number, image in enumerate(images, 1):
        shown = "shown below" if image["shown"] else "not shown"
        note = f", {image['note']}" if "note" in image else ""
        path = f", file {image['path']}" if "path" in image else ""
        lines.append(
            f"image {number}: {image['mime_type']}, {size_text(image['bytes'])}, {shown}{note}{path}"
        )
    return ["\n".join(lines)] if lines else []


def _files_text(files: Mapping[str, Any]) -> list[str]:
    lines = []
    for name in ("created", "changed"):
        if paths := files.get(name):
            lines.append(
                f"files {name}: " + ", ".join(f"{path} ({size_text(size)})" for path, size in paths.items())
            )
    if deleted := files.get("deleted"):
        lines.append("files deleted: " + ", ".join(deleted))
    if more := files.get("more"):
        lines.append(f"and {more} more files")
    return ["\n".join(lines)] if lines else []


def _footer(record: Mapping[str, Any]) -> str:
    status = {"ok": "done"}.get(record["status"], record["status"])
    where = ", ".join(part for part in (record["backend"],) if part)
    state = {"preserved": "variables kept", "reset": "variables LOST, files kept", "lost": "session LOST"}
    return (
        f"[{status} in {record['duration_s']:.2f} s · session {record['session_id']}: "
        f"{state.get(record['session_state'], 'state unknown')} · {where}]"
    )


def as_result(
    text: str,
    record: dict[str, Any],
    *,
    structured: Literal["auto", "always", "never"],
    images: list[ImageContent] | None = None,
    extra: list[ContentBlock] | None = None,
    usage: Mapping[str, Any] | None = None,
) -> CallToolResult:
    """A tool's result: `text` first, then `images` and `extra`; `record` as structured content by the
    setting. `usage` is for programs only.
    """
    content: list[ContentBlock] = [TextContent(text=text), *(images or ()), *(extra or ())]
    send = structured == "always" or (structured == "auto" and not images and not extra)
    return CallToolResult(
        content=content,
        structured_content=record if send else None,
        is_error=False,
        _meta={META_KEY: record if usage is None else {**record, "usage": usage}},
    )


def image_blocks(pictures: list[Picture]) -> list[ImageContent]:
    """The pictures that are shown, as MCP content."""
    return [ImageContent(data=p.data, mime_type=p.mime_type) for p in pictures if p.data is not None]
