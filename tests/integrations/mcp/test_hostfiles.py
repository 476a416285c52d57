import os
from pathlib import Path

import pytest
from mcp.server.mcpserver.exceptions import ToolError

from ringfence.integrations.mcp.servers.executor.hostfiles import HostFiles, default_roots, new_file


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    (root / "data.csv").write_text("a,b\n")
    (root / ".env").write_text("SECRET=1\n")
    (tmp_path / "outside.txt").write_text("no")
    (root / "link").symlink_to(tmp_path / "outside.txt")
    (root / ".git").mkdir()
    return root


def test_files_below_a_root_may_be_read(root: Path) -> None:
    host = HostFiles([root])
    assert host.to_read("data.csv") == root / "data.csv"
    assert host.to_read(str(root / "data.csv")) == root / "data.csv"


@pytest.mark.parametrize(
    "path",
    [
        "../outside.txt",
        "/etc/passwd",
        "link",
        ".env",
        ".git/config",
        "missing.csv",
        ".",
        "a/../../outside.txt",
    ],
)
def test_nothing_else_may_be_read(root: Path, path: str) -> None:
    with pytest.raises(ToolError):
        HostFiles([root]).to_read(path)


@pytest.mark.parametrize(
    "path", ["../new.txt", "/etc/new", ".git/hooks", "link", ".bashrc", "nowhere/new.txt", "."]
)
def test_nothing_else_may_be_written(root: Path, path: str) -> None:
    with pytest.raises(ToolError):
        HostFiles([root]).to_write(path, overwrite=True)


def test_an_existing_file_is_replaced_only_on_request(root: Path) -> None:
    host = HostFiles([root])
    assert host.to_write("new.png", overwrite=False) == root / "new.png"
    with pytest.raises(ToolError, match="overwrite=true"):
        host.to_write("data.csv", overwrite=False)
    assert host.to_write("data.csv", overwrite=True) == root / "data.csv"


def test_without_a_root_everything_is_refused_and_the_remedy_named() -> None:
    with pytest.raises(ToolError, match="RINGFENCE_MCP_ROOTS"):
        HostFiles([]).to_read("data.csv")


def test_the_default_root_is_never_too_wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home" / "me"
    (home / "project" / "gone").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    expected = {home / "project": (home / "project",), home: (), tmp_path / "home": (), Path("/"): ()}
    for directory, roots in expected.items():
        monkeypatch.chdir(directory)
        assert default_roots() == roots
    monkeypatch.chdir(home / "project" / "gone")
    (home / "project" / "gone").rmdir()
    assert default_roots() == ()


def test_a_root_below_a_hidden_directory_of_another_one_is_open(root: Path) -> None:
    (root / ".git" / "data").mkdir()
    (root / ".git" / "data" / "in.csv").write_text("1")
    host = HostFiles([root, root / ".git" / "data"])
    assert host.to_read(".git/data/in.csv").read_text() == "1"
    with pytest.raises(ToolError, match="hidden"):
        host.to_read(".git/config")


@pytest.mark.parametrize("name", ["a\0b", "~nobody-of-this-name/x"])
def test_what_is_no_path_is_refused(root: Path, name: str) -> None:
    with pytest.raises(ToolError, match="no path"):
        HostFiles([root]).to_read(name)


def test_new_files_have_the_permissions_that_the_user_wants(root: Path) -> None:
    before = os.umask(0o077)
    try:
        with new_file(root / "private", overwrite=False) as file:
            file.write(b"mine")
    finally:
        os.umask(before)
    assert (root / "private").stat().st_mode & 0o777 == 0o600


def test_a_new_file_appears_whole_or_not_at_all(root: Path) -> None:
    target = root / "out.bin"
    with pytest.raises(RuntimeError), new_file(target, overwrite=False) as file:
        file.write(b"half")
        raise RuntimeError
    assert not target.exists()
    with new_file(target, overwrite=False) as file:
        file.write(b"whole")
    assert target.read_bytes() == b"whole"
    with pytest.raises(FileExistsError), new_file(target, overwrite=False) as file:
        file.write(b"other")
    assert target.read_bytes() == b"whole"
    assert {path.name for path in root.iterdir()} == {"data.csv", ".env", "link", ".git", "out.bin"}
