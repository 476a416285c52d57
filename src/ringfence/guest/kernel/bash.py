"""A bash kernel: one bash that keeps its directory, variables and functions."""

import os
import re
import signal
import subprocess
from typing import Any

from . import streams
from .channel import Channel, Message
from .interrupts import Interrupts

_COMMANDS_FD = 200
_STATUS_FD = 201
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)

# Fields are NUL-terminated: the number of variables, each name and value, the code. Variables go back to what
# they were before the cell. An interrupt leaves all loops of the cell and this one; the loop is then entered
# anew.
_LOOP = r"""
__rf_eof= __rf_busy=
__rf_loop='
while IFS= read -r -d "" -u 200 __rf_count || { __rf_eof=1; false; }; do
  __rf_names=(); __rf_before=()
  for ((__rf_i = 0; __rf_i < __rf_count; __rf_i++)); do
    IFS= read -r -d "" -u 200 __rf_name; IFS= read -r -d "" -u 200 __rf_value
    __rf_names+=("$__rf_name"); __rf_before+=("${!__rf_name+x}${!__rf_name-}")
    export "$__rf_name=$__rf_value"
  done
  IFS= read -r -d "" -u 200 __rf_code
  __rf_busy=1
  eval "$__rf_code" 200<&- 201>&-
  __rf_status=$?
  __rf_busy=
  __rf_finish "$__rf_status"
done
if [[ ! $__rf_eof ]]; then
  if [[ $__rf_busy ]]; then __rf_busy=; __rf_finish 130; fi
  eval "$__rf_loop"
fi
'
__rf_finish() {
  local i
  for i in "${!__rf_names[@]}"; do
    if [[ ${__rf_before[i]} ]]; then export "${__rf_names[i]}=${__rf_before[i]:1}"
    else unset "${__rf_names[i]}"; fi
  done
  printf "%s\n" "$1" >&201
}
trap 'break 1000' INT
eval "$__rf_loop"
"""


class BashKernel:
    """Runs cells in one bash. A cell that ends bash itself (``exit``) ends the kernel, with its status."""

    def __init__(self, channel: Channel, interrupts: Interrupts) -> None:
        self._channel = channel
        self._interrupts = interrupts
        self._count = 1
        command_read, self._commands = os.pipe()
        self._status, status_write = os.pipe()
        os.dup2(command_read, _COMMANDS_FD)
        os.dup2(status_write, _STATUS_FD)
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc", "-c", _LOOP],  # noqa: S607 - the sandbox's own bash, by its PATH
            stdin=subprocess.DEVNULL,
            pass_fds=(_COMMANDS_FD, _STATUS_FD),
        )
        for fd in (command_read, status_write, _COMMANDS_FD, _STATUS_FD):
            os.close(fd)

    def serve(self) -> None:
        """Run cells until the guest closes the channel or bash ends."""
        self._channel.send({"event": "ready", "pid": os.getpid()})
        while (request := self._channel.wait()) is not None:
            self._channel.exchange({"event": "started", "count": self._count})
            self._count += 1
            self._execute(request)
            streams.flush()
            self._channel.send({"event": "done", "id": request.get("id")})
        self._bash.kill()

    def _execute(self, request: Message) -> None:
        env: dict[str, str] = request.get("env") or {}
        wrong = [name for name in env if not _NAME.fullmatch(name)]
        if wrong:
            text = f"bash has no variables with such names: {', '.join(map(repr, wrong))}"
            self._channel.exchange(
                {"event": "error", "name": "EnvironmentError", "value": text, "traceback": ""}
            )
            return
        status = self._run(env, str(request["code"]))
        if status is None:
            code = self._bash.wait()
            os._exit(code if code >= 0 else 128 - code)
        if status:
            self._channel.exchange(_failure(status))

    def _run(self, env: dict[str, str], code: str) -> int | None:
        """Run one cell; its exit status, or None when bash is gone."""
        fields = [str(len(env)), *(part for pair in env.items() for part in pair), code]
        data = b"".join(
            field.replace("\0", "").encode("utf-8", "surrogateescape") + b"\0" for field in fields
        )
        with self._interrupts.ignored():
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(self._commands, view) :]
            except BrokenPipeError:
                return None
            line = b""
            while not line.endswith(b"\n"):
                piece = os.read(self._status, 16)
                if not piece:
                    return None
                line += piece
        return int(line)


def _failure(status: int) -> dict[str, Any]:
    """The error of a cell whose last command failed."""
    if status == 128 + signal.SIGINT:
        return {
            "event": "error",
            "name": "KeyboardInterrupt",
            "value": "the cell was interrupted",
            "traceback": "",
        }
    return {"event": "error", "name": "Error", "value": f"exit status {status}", "traceback": ""}
