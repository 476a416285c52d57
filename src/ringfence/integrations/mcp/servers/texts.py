"""What models read about the server and its tools. All of it stays under 2000 characters.

It is made from what is in force: the settings, and what the first sandbox turned out to be, once there was
one.
"""

from typing import TYPE_CHECKING

from ringfence.core.config import Settings
from ringfence.core.errors import ConfigurationError

if TYPE_CHECKING:
    from ringfence.integrations.mcp.servers.executor.facts import Facts


def _place(settings: Settings) -> str:
    try:
        name = settings.choose_backend()
        policy = settings.policy()
    except ConfigurationError:
        return "an isolated sandbox"
    if policy is not None and len(policy.backends()) > 1:
        return "an isolated sandbox (where, the operator's rules decide; every result says it)"
    return {
        "local": "an isolated Linux sandbox on the user's own machine",
        "e2b": "an isolated sandbox in E2B's cloud",
        "remote": "an isolated sandbox on a Ringfence server",
    }[name]


def instructions(settings: Settings, *, over_http: bool = False) -> str:
    """The server's instructions."""
    if over_http:
        sessions = (
            "a call without session_id makes a new session, and its handle is in the result: pass it from "
            "then on. upload_file and download_file give addresses for large files."
        )
    else:
        sessions = (
            "without session_id all calls share one default session, which is made at the first call. Use "
            "upload_file to bring the user's files in and download_file to get results out."
        )
    return (
        f"Runs Python and shell commands in {_place(settings)}. Variables, imports and files of a session "
        f"persist from call to call; {sessions} Sessions are isolated from each other and from the computer "
        f"they run on. A session that is not used for {settings.lease} s ends; its handle then says what was "
        f'lost, and on_loss="replay" rebuilds it. Exceptions in the code are normal results with a '
        "traceback. Every result says whether variables were kept. Code that takes longer than "
        f"{settings.mcp_patience:g} s goes on while the call answers; get_execution has the rest."
    )


def _installed(facts: "Facts | None") -> str:
    if facts is None or not facts.packages:
        return (
            "The data-science packages of the template (in the default one: pandas, numpy, scipy, "
            "matplotlib, scikit-learn and more) are installed."
        )
    named = ", ".join(f"{name} {version}" for name, version in facts.packages.items())
    python = f"Python {facts.python} with " if facts.python else ""
    return f"Installed: {python}{named}, and more."


def _limits(facts: "Facts | None") -> str:
    if facts is None:
        return ""
    parts = []
    if facts.cpus:
        parts.append(f"{facts.cpus} CPU{'' if facts.cpus == 1 else 's'}")
    if facts.memory_mb:
        parts.append(f"{facts.memory_mb} MiB of memory (files included)")
    return f" The sandbox has {', '.join(parts)}." if parts else ""


def _network(settings: Settings) -> str:
    return {
        "none": " It has no network.",
        "packages": " Of the network it reaches package indexes only (pip install works).",
        "internet": "",
    }.get(settings.mcp_network, f" Of the network it reaches only: {settings.mcp_network}.")


def descriptions(
    settings: Settings, facts: "Facts | None" = None, *, over_http: bool = False
) -> dict[str, str]:
    """A description for every tool, by name. `facts` are None until there was a sandbox."""
    limit = f"{settings.exec_timeout:g}"
    offline = settings.mcp_network == "none"
    return {
        "execute_code": (
            f"Run Python (IPython) in {_place(settings)}. State persists: variables, imports and files of "
            "earlier calls in the same session are there. The value of the last expression is returned as "
            "in a notebook, with stdout, stderr and the traceback of an exception; matplotlib, plotly and "
            "PIL pictures come back as images (call plt.show() or leave the figure last). Long output is "
            "cut to its head and tail, the whole is kept in a file of the sandbox. The working directory is "
            f"/home/user. {_installed(facts)}{_limits(facts)}{_network(settings)} After timeout_s (default "
            f"{limit}) the code is interrupted and variables are kept. Work that takes longer than "
            f"{settings.mcp_patience:g} s goes on while the call answers with its execution_id for "
            "get_execution; background=true answers at once."
        ),
        "get_execution": (
            "The output so far of an execution, or its result when it has ended. Waits up to wait_s seconds "
            "for the end. Use it after execute_code said that the code is still running."
        ),
        "interrupt_execution": (
            "Interrupt running code, like Ctrl-C: one execution by its id, or whatever runs in a session. "
            "Variables are kept."
        ),
        "run_command": (
            "Run a bash command in the session's sandbox (git, ls, unzip, pytest, …). Each command is a new "
            "shell in /home/user; files are shared with execute_code, Python variables are not. Killed "
            f"after timeout_s (default {limit})."
        ),
        "install_packages": _install_text(offline=offline),
        "list_files": "List a directory of the sandbox: depth > 1 descends; pattern filters names.",
        "read_file": (
            "Read a text file of the sandbox by pages of lines (offset, limit), or look at a PNG, JPEG, GIF "
            "or WebP picture."
        ),
        "write_file": "Create or replace a text file in the sandbox; directories are made as needed.",
        "export_notebook": (
            "Write the session's cells, with their outputs, as a Jupyter notebook (.ipynb): into the sandbox"
            + ("." if over_http else ", or to the user's computer (local_path).")
        ),
        "create_session": (
            "Make a session: a fresh sandbox with its own variables, files and processes. Returns its "
            "session_id. "
            + ("" if over_http else "Not needed for ordinary work: the default session is made by itself. ")
            + 'on_loss="replay": should its sandbox be lost, it is rebuilt by running its cells again.'
        ),
        "fork_session": (
            "Copy a session as it is now: its files and its Python variables; the answer says so, and names "
            "what could not be copied. To try something without touching the original. Returns the copy's "
            "session_id."
        ),
        "list_sessions": "List the open sessions: handles, idle time, and what runs; and those that were "
        "lost.",
        "close_session": (
            "End a session with its variables and files."
            if over_http
            else "End a session (default: the default one) with its variables and files."
        ),
        **_transfer_texts(over_http=over_http),
    }


def _install_text(*, offline: bool) -> str:
    text = "Install Python packages into the session with pip, for as long as it lives."
    if offline:
        return (
            f"{text} The sandboxes have no network, so only wheels that were uploaded can be installed "
            "(packages: their paths)."
        )
    return f"{text} Names with optional versions, or paths of wheels in the sandbox."


def _transfer_texts(*, over_http: bool) -> dict[str, str]:
    if over_http:
        return {
            "upload_file": (
                "Put a file into the sandbox: from text (content) or from base64 (content_base64); with "
                "path alone, the answer is an address to which a file of any size can be sent."
            ),
            "download_file": (
                "Bring a file out of the sandbox: as content of the answer if it is small, and by an "
                "address in any case."
            ),
        }
    return {
        "upload_file": (
            "Put a file into the sandbox: from the user's computer (local_path, in an allowed directory; "
            "any size, it does not pass through the conversation), from text (content) or from base64 "
            "(content_base64). Give exactly one of them."
        ),
        "download_file": (
            "Bring a file out of the sandbox: to the user's computer (local_path, in an allowed directory; "
            "any size), or without local_path as content of the answer (small files only). An existing file "
            "is replaced only with overwrite."
        ),
    }
