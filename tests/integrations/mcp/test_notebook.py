"""Notebooks and journals, without a sandbox."""

import json
from pathlib import Path

import nbformat
from e2b_code_interpreter import ExecutionError, Result

from ringfence.integrations.mcp.servers.executor import journal as journals
from ringfence.integrations.mcp.servers.executor.cells import Cell
from ringfence.integrations.mcp.servers.executor.journal import Journal, JournalStore
from ringfence.integrations.mcp.servers.executor.notebook import cell_outputs, notebook


def a_cell(code: str) -> Cell:
    cell = Cell("x_1", code, 60)
    cell.status, cell.execution_count = "ok", 3
    return cell


def add(journal: Journal, cell: Cell) -> None:
    journal.add_cell(
        cell.code,
        cell.status or "unknown",
        exec_timeout=60,
        execution_count=cell.execution_count,
        outputs=cell_outputs(cell),
        ends_python=False,
    )


def test_a_notebook_is_valid_and_has_the_outputs() -> None:
    journal = Journal()
    cell = a_cell("print('é'); x")
    cell.stdout.append("é\n")
    cell.results.append(Result(text="42", png="AAAA", is_main_result=True))
    add(journal, cell)
    failed = a_cell("1 / 0")
    failed.error = ExecutionError("ZeroDivisionError", "division by zero", "line 1\nline 2")
    failed.status = "error"
    add(journal, failed)
    journal.add_file("/home/user/a.csv", b"1", 1)
    journal.add_command("ls", "/tmp", "ok", 60)
    journal.add_packages(["polars", "httpx>=0.27"])
    read = nbformat.reads(notebook(journal, "3.11.7").decode(), as_version=4)
    nbformat.validate(read)
    first, second, file, command, packages = read.cells
    assert first.source == "print('é'); x"
    assert [output.output_type for output in first.outputs] == ["stream", "execute_result"]
    assert first.outputs[1].data["text/plain"] == "42"
    assert second.outputs[0].ename == "ZeroDivisionError"
    assert file.cell_type == "markdown"
    assert command.source == "%%bash\ncd /tmp\nls"
    assert packages.source == "%pip install polars 'httpx>=0.27'"
    assert read.metadata.language_info.version == "3.11.7"


def test_an_empty_notebook_is_valid() -> None:
    nbformat.validate(nbformat.reads(notebook(Journal(), None).decode(), as_version=4))


def test_a_journal_is_bounded_and_says_so() -> None:
    journal = Journal()
    for number in range(journals.MAX_ENTRIES + 5):
        journal.add_command(f"echo {number}", None, "ok", 60)
    assert journal.missing == 5
    large = Journal()
    large.add_file("/big", b"x" * (journals.MAX_FILE + 1), journals.MAX_FILE + 1)
    assert large.entries[0].data is None
    assert large.summary() == "1 uploaded file"


def test_a_journal_on_disk_is_private_and_survives_a_cut(tmp_path: Path) -> None:
    store = JournalStore(tmp_path / "journals", "token:anna")
    file = store.open("s_1")
    assert file is not None
    journal = Journal({"A": "b"}, "replay")
    file.start({"envs": journal.envs, "on_loss": journal.on_loss}, journal.entries)
    journal.file = file
    add(journal, a_cell("x = 1"))
    journal.add_file("/home/user/a", b"\0\1", 2)
    (path,) = (tmp_path / "journals").glob("*/*.jsonl")
    assert path.stat().st_mode & 0o777 == 0o600
    assert "s_1" not in str(path)
    path.write_text(path.read_text() + json.dumps({"kind": "cell"})[:-3])
    read = store.open("s_1")
    assert read is not None
    again = read.read()
    assert again is not None
    assert (again.envs, again.on_loss) == ({"A": "b"}, "replay")
    assert [entry.kind for entry in again.entries] == ["cell", "file"]
    assert again.decode(again.entries[1]) == b"\0\1"
    other = JournalStore(tmp_path / "journals", "token:ben").open("s_1")
    assert other is not None
    assert other.read() is None
    file.remove()
    assert read.read() is None
    assert JournalStore(None, "").open("s_1") is None


def test_a_line_that_a_full_disk_cut_is_missing_and_no_other(tmp_path: Path) -> None:
    file = JournalStore(tmp_path, "").open("s_1")
    assert file is not None
    journal = Journal()
    journal.keep_in(file)
    add(journal, a_cell("text = 'one\u2028two\x85three\ud800'"))
    (path,) = tmp_path.glob("*/*.jsonl")
    path.write_bytes(path.read_bytes() + b'\n{"kind": "cell", "te')
    add(journal, a_cell("x = 1"))
    again = file.read()
    assert again is not None
    assert [entry.text for entry in again.entries] == [entry.text for entry in journal.entries]
    assert again.missing == 1


def test_a_journal_that_was_removed_does_not_come_back(tmp_path: Path) -> None:
    file = JournalStore(tmp_path, "").open("s_1")
    assert file is not None
    journal = Journal()
    journal.keep_in(file)
    file.remove()
    add(journal, a_cell("x = 1"))
    assert list(tmp_path.glob("*/*.jsonl")) == []


def test_data_that_must_stay_is_not_kept_as_if_it_could_go(tmp_path: Path) -> None:
    file = JournalStore(tmp_path, "").open("s_1")
    assert file is not None
    journal = Journal()
    journal.keep_in(file)
    (path,) = tmp_path.glob("*/*.jsonl")
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to("/dev/full")  # opening it fails, as O_NOFOLLOW has it: the journal cannot be written anew
    journal.keep_here()
    assert file.read() is None
    assert journal.file is None
