import base64
import json
from typing import Any

import pytest
from e2b_code_interpreter import ExecutionError, OutputMessage, Result

from ringfence.integrations.mcp.meta import META_KEY
from ringfence.integrations.mcp.servers.executor.cells import Cell
from ringfence.integrations.mcp.servers.executor.filewatch import Changes
from ringfence.integrations.mcp.servers.executor.images import Picture
from ringfence.integrations.mcp.servers.executor.reports import (
    Spill,
    Surroundings,
    as_result,
    cell_record,
    image_blocks,
    record_text,
)

WHERE = Surroundings("s_1", "local, isolation standard", "standard")


def make_cell(**fields: Any) -> Cell:
    cell = Cell("x_1", "code", 60.0)
    cell.status = "ok"
    cell.execution_count = 1
    for name, value in fields.items():
        setattr(cell, name, value)
    return cell


def record_of(
    cell: Cell, pictures: list[Picture] | None = None, changes: Changes | None = None
) -> dict[str, Any]:
    return cell_record(cell, pictures or [], changes or Changes(), Spill({}), WHERE)


def test_the_text_alone_is_complete() -> None:
    cell = make_cell(results=[Result(text="42", is_main_result=True), Result(text="shown")])
    cell.take_stdout(OutputMessage("hello\n", 0))
    cell.take_stderr(OutputMessage("careful\n", 0, True))
    changes = Changes(created={"out.csv": 1200}, changed={"in.csv": 3}, deleted=["old.csv"])
    picture = Picture("image/png", 2000, "AAAA", note="shown smaller")
    text = record_text(record_of(cell, [picture], changes))
    for part in (
        "stdout:\nhello",
        "stderr:\ncareful",
        "result:\n42",
        "display:\nshown",
        "image 1: image/png, 2.0 KB, shown below",
        "files created: out.csv (1.2 KB)",
        "files changed: in.csv",
        "files deleted: old.csv",
        "variables kept",
        "local, isolation standard",
        "s_1",
    ):
        assert part in text


def test_silence_is_said() -> None:
    assert record_text(record_of(make_cell())).startswith("(no output)")


def test_an_exception_is_a_normal_result_with_traceback_and_hint() -> None:
    error = ExecutionError(
        "ModuleNotFoundError",
        "No module named 'polars'",
        "Traceback\nModuleNotFoundError: No module named 'polars'",
    )
    record = record_of(make_cell(status="error", error=error))
    result = as_result(record_text(record), record, structured="auto")
    assert result.is_error is False
    assert record["error"]["name"] == "ModuleNotFoundError"
    assert "pip install polars" in record_text(record)


@pytest.mark.parametrize(
    ("status", "part"),
    [
        ("timeout", "background=true"),
        ("interrupted", "interrupted on request"),
        ("lost", "the sandbox ended"),
        ("output_limit", "write to a file"),
    ],
)
def test_every_other_end_is_explained(status: str, part: str) -> None:
    assert part in record_text(record_of(make_cell(status=status)))


def test_a_lost_state_is_shouted() -> None:
    text = record_text(record_of(make_cell(state="reset", state_reason="it ran out of memory")))
    assert "variables LOST" in text
    assert "it ran out of memory" in text


def test_structured_content_and_images_do_not_go_together_unless_asked() -> None:
    picture = Picture("image/png", 3, base64.b64encode(b"abc").decode())
    record = record_of(make_cell(), [picture])
    images = image_blocks([picture])
    assert as_result("t", record, structured="auto", images=images).structured_content is None
    assert as_result("t", record, structured="always", images=images).structured_content == record
    assert as_result("t", record, structured="auto").structured_content == record
    assert as_result("t", record, structured="never").structured_content is None
    for setting in ("auto", "always", "never"):
        result = as_result("t", record, structured=setting, images=images)  # type: ignore[arg-type]
        assert (result.meta or {})[META_KEY] == record
    assert "YWJj" not in json.dumps(record)


def test_long_output_is_cut_and_the_file_named() -> None:
    cell = make_cell()
    cell.take_stdout(OutputMessage("x" * 100_000, 0))
    record = cell_record(cell, [], Changes(), Spill({"stdout": "/tmp/ringfence/x_1/stdout.txt"}), WHERE)
    text = record_text(record)
    assert len(text) < 8000
    assert "stdout was 100000 characters" in text
    assert "/tmp/ringfence/x_1/stdout.txt" in text
    assert record["stdout_total_chars"] == 100_000


def test_a_whole_result_stays_small_whatever_the_cell_did() -> None:
    cell = make_cell(results=[Result(text="y" * 50_000) for _ in range(50)])
    cell.take_stdout(OutputMessage("x" * 1_000_000, 0))
    cell.error = ExecutionError("E", "v" * 100_000, "t" * 100_000)
    pictures = [Picture("image/png", 120 * 1024, "A" * (160 * 1024)) for _ in range(4)]
    changes = Changes(created={f"{'n' * 100}{number}": 1 for number in range(30)})
    record = cell_record(cell, pictures, changes, Spill({}), WHERE)
    result = as_result(record_text(record), record, structured="always", images=image_blocks(pictures))
    assert len(result.model_dump_json(by_alias=True)) < 900_000
