"""What models read about the server and its tools, made from the settings in force. All of it stays under
2000 characters.
"""

from ringfence.core.config import Settings
from ringfence.core.errors import ConfigurationError


def _place(settings: Settings) -> str:
    try:
        name = settings.choose_backend()
    except ConfigurationError:
        return "an isolated sandbox"
    return {
        "local": "an isolated Linux sandbox on the user's own machine",
        "e2b": "an isolated sandbox in E2B's cloud",
        "remote": "an isolated sandbox on a Ringfence server",
    }[name]


def instructions(settings: Settings) -> str:
    """The server's instructions."""
    return (
        f"Runs Python and shell commands in {_place(settings)}. Variables, imports and files of a "
        f"session persist from call "
        f"to call; without session_id all calls share one default session, which is made at the first "
        f"call. Sessions are "
        f"isolated from each other and from the user's computer: use upload_file to bring files in "
        f"and download_file to get "
        f"them out. A session that is not used for {settings.lease} s ends. Exceptions in the code "
        f"are normal results with a "
        f"traceback. Every result says whether variables were kept."
    )


def descriptions(settings: Settings) -> dict[str, str]:
    """A description for every tool, by name."""
    limit = f"{settings.exec_timeout:g}"
    return {
        "execute_code": (
            f"Run Python (IPython) in {_place(settings)}. State persists: variables, imports and "
            f"files of earlier calls in the "
            f"same session are there. The value of the last expression is returned as in a notebook, "
            f"with stdout, stderr and "
            f"the traceback of an exception; matplotlib, plotly and PIL pictures come back as images "
            f"(call plt.show() or leave "
            f"the figure last). Long output is cut to its head and tail, the whole is kept in a file "
            f"of the sandbox. The "
            f"working directory is /home/user. The data-science packages of the template (in the "
            f"default one: pandas, numpy, "
            f"scipy, matplotlib, scikit-learn and more) are installed. After timeout_s (default "
            f"{limit}) the code is "
            f"interrupted and variables are kept; for long work set background=true and use get_execution."
        ),
        "get_execution": (
            "The output so far of an execution, or its result when it has ended. Waits up to wait_s "
            "seconds for the end. "
            "Use it after execute_code with background=true."
        ),
        "interrupt_execution": (
            "Interrupt running code, like Ctrl-C: one execution by its id, or whatever runs in a "
            "session. Variables are kept."
        ),
        "run_command": (
            f"Run a bash command in the session's sandbox (git, ls, unzip, pytest, …). Each command "
            f"is a new shell in /home/user; "
            f"files are shared with execute_code, Python variables are not. Killed after timeout_s "
            f"(default {limit})."
        ),
        "list_files": "List a directory of the sandbox: depth > 1 descends; pattern filters names.",
        "read_file": (
            "Read a text file of the sandbox by pages of lines (offset, limit), or look at a PNG, "
            "JPEG, GIF or WebP picture."
        ),
        "write_file": "Create or replace a text file in the sandbox; directories are made as needed.",
        "upload_file": (
            "Put a file into the sandbox: from the user's computer (local_path, in an allowed "
            "directory; any size, it does not "
            "pass through the conversation), from text (content) or from base64 (content_base64). "
            "Give exactly one of them."
        ),
        "download_file": (
            "Bring a file out of the sandbox: to the user's computer (local_path, in an allowed "
            "directory; any size), or "
            "without local_path as content of the answer (small files only). An existing file is "
            "replaced only with overwrite."
        ),
        "create_session": (
            "Make another session: a fresh sandbox with its own variables, files and processes. "
            "Returns its session_id. Not "
            "needed for ordinary work: the default session is made by itself."
        ),
        "list_sessions": "List the open sessions: handles, idle time, and what runs.",
        "close_session": "End a session (default: the default one) with its variables and files.",
    }
