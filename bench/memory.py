"""Memory of a process and all its descendants, shared pages counted by share (PSS)."""

from pathlib import Path


def tree_pss(root: int) -> int | None:
    """Bytes of `root` and everything below it; None when the kernel does not let us see all of it."""
    children = _children()
    total, waiting = 0, [root]
    while waiting:
        pid = waiting.pop()
        waiting += children.get(pid, ())
        try:
            total += _pss(pid)
        except ProcessLookupError:
            continue  # it ended meanwhile
        except PermissionError:
            return None
    return total


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def _children() -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    return children
