"""A session as a Jupyter notebook (nbformat 4.5): its cells with their outputs."""

import hashlib
import json
import shlex
from collections.abc import Iterable
from typing import Any

from e2b_code_interpreter import ExecutionError, Result

from ringfence.integrations.mcp.servers.executor.cells import Cell
from ringfence.integrations.mcp.servers.executor.journal import Entry, Journal
from ringfence.integrations.mcp.servers.executor.output import shorten

_STREAM_LIMIT = 200_000
_OUTPUT_LIMIT = 4 * 1024 * 1024
_TYPES = {
    "text": "text/plain",
    "html": "text/html",
    "markdown": "text/markdown",
    "svg": "image/svg+xml",
    "png": "image/png",
    "jpeg": "image/jpeg",
    "latex": "text/latex",
    "json": "application/json",
    "javascript": "application/javascript",
}


def cell_outputs(cell: Cell) -> list[dict[str, Any]]:
    """What a cell showed, as a notebook has it; long streams are cut to their head and tail."""
    outputs: list[dict[str, Any]] = []
    for name, stream in (("stdout", cell.stdout), ("stderr", cell.stderr)):
        if stream.total:
            text = shorten(stream.text, _STREAM_LIMIT)[0]
            outputs.append({"output_type": "stream", "name": name, "text": text})
    outputs += [_output(result, cell.execution_count) for result in cell.results]
    if cell.error is not None:
        outputs.append(_error(cell.error))
    return outputs


def _output(result: Result, execution_count: int | None) -> dict[str, Any]:
    data: dict[str, Any] = {}
    size = 0
    for name, mime_type in _TYPES.items():
        value = getattr(result, name, None)
        if value is None:
            continue
        size += len(value) if isinstance(value, str) else len(json.dumps(value))
        if size > _OUTPUT_LIMIT:
            data.setdefault("text/plain", "[too large to keep]")
            break
        data[mime_type] = value
    kind = "execute_result" if result.is_main_result else "display_data"
    output: dict[str, Any] = {"output_type": kind, "data": data, "metadata": {}}
    if kind == "execute_result":
        output["execution_count"] = execution_count
    return output


def _error(error: ExecutionError) -> dict[str, Any]:
    return {
        "output_type": "error",
        "ename": error.name,
        "evalue": error.value or "",
        "traceback": (error.traceback or "").splitlines(),
    }


def notebook(journal: Journal, python: str | None) -> bytes:
    """The journal as the bytes of an .ipynb file. Commands, packages and files appear where they happened.

    python: the version of the session's Python, where it is known.
    """
    cells = list(_cells(journal.entries))
    document = {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {
                "name": "python",
                "file_extension": ".py",
                "mimetype": "text/x-python",
                **({"version": python} if python else {}),
            },
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "replace")


def _cells(entries: Iterable[Entry]) -> Iterable[dict[str, Any]]:
    for number, entry in enumerate(entries):
        common = {"id": hashlib.sha256(f"{number} {entry.text}".encode()).hexdigest()[:16], "metadata": {}}
        if entry.kind == "file":
            text = f"*The file `{entry.text}` ({entry.size} bytes) was put in here.*"
            yield {**common, "cell_type": "markdown", "source": text}
            continue
        yield {
            **common,
            "cell_type": "code",
            "source": _source(entry),
            "execution_count": entry.execution_count,
            "outputs": entry.outputs,
        }


def _source(entry: Entry) -> str:
    if entry.kind == "install":
        return "%pip install " + shlex.join(entry.text.split("\n"))
    if entry.kind == "command":
        where = f"cd {shlex.quote(entry.cwd)}\n" if entry.cwd else ""
        return f"%%bash\n{where}{entry.text}"
    return entry.text
