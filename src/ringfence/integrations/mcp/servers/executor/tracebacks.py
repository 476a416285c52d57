"""Tracebacks for a model: the user's frames whole, the libraries' frames in one line; and a hint for the
known failures.
"""

import re
from itertools import pairwise

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
# IPython starts every frame at the margin: `Cell In[3], line 1`, `File /usr/lib/x.py:12, in f(a)`, `File
# <string>:1`.
_FRAME = re.compile(r"^(?:Cell In\s?\[\d+\]|File [^\n]+|Input In \[\d+\]|~?/[^\n]+ in )", re.MULTILINE)
_OWN = re.compile(r"^(?:Cell In|Input In|File (?:\"?/home/user/|~/|<))")
_ERROR_LINE = re.compile(
    r"^[A-Za-z_][\w.]*(?:Error|Exception|Warning|Interrupt|Exit|Iteration|Group)\b", re.MULTILINE
)
_MODULE = re.compile(r"No module named '([\w.]+)'")
_NAME = re.compile(r"name '(\w+)' is not defined")


def trim_traceback(traceback: str) -> str:
    """`traceback` without colours, and without the frames that lie between the user's code and the last
    one.
    """
    text = _ANSI.sub("", traceback).strip()
    starts = [match.start() for match in _FRAME.finditer(text)]
    if len(starts) < 3:
        return text
    bounds = [*starts, len(text)]
    frames = [text[a:b] for a, b in pairwise(bounds)]
    kept = [text[: starts[0]]]
    skipped = 0
    for number, frame in enumerate(frames):
        if _OWN.match(frame) or number == len(frames) - 1:
            kept.append(_skipped(skipped) + frame)
            skipped = 0
        else:
            skipped += 1
    return "".join(kept).strip()


def _skipped(count: int) -> str:
    if count == 0:
        return ""
    return f"… {count} {'frame' if count == 1 else 'frames'} inside libraries …\n\n"


def hint_for(name: str, value: str, *, state_was_lost: bool = False) -> str | None:
    """One line that tells a model what to do about the exception `name`: `value`; None when there is
    nothing special.
    """
    if name in ("ModuleNotFoundError", "ImportError") and (module := _MODULE.search(value)):
        package = module.group(1).partition(".")[0]
        return (
            f"'{package}' is not installed. `%pip install {package}` installs it where the sandbox "
            f"has network access; "
            f"otherwise use what is installed (`%pip list`)."
        )
    if name == "NameError" and (found := _NAME.search(value)):
        if not state_was_lost:
            return None
        return (
            f"The session was started afresh, so '{found.group(1)}' is gone; "
            f"run the cells that defined it again."
        )
    if name == "MemoryError":
        return "The sandbox's memory limit was reached; work in chunks or free what is not needed (`del x`)."
    if name == "SystemExit":
        return "The code called exit(); the session goes on and its variables are kept."
    if name == "FileNotFoundError":
        return "Relative paths start at /home/user; list_files shows what is there, upload_file adds a file."
    if name in ("gaierror", "URLError", "ConnectionError", "ConnectTimeout", "NameResolutionError"):
        return "When the sandbox may not reach a host, a [network: ...] line on stderr says so and why."
    if name == "EOFError":
        return "There is no standard input in the sandbox; give values in the code."
    return None
