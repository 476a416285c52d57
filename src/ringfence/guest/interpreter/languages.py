"""Which kernels there are: our own, and the Jupyter kernels that are installed in the sandbox."""

import json
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ringfence.guest.interpreter.identity import PATH
from ringfence.guest.interpreter.nursery import KernelStartError

_KERNEL_DIRECTORIES = ("/usr/local/share/jupyter/kernels", "/usr/share/jupyter/kernels")
_LARGEST = 64 * 1024


@dataclass(frozen=True)
class Language:
    """A language as a context has it. `kernel` is the program that runs it: ``python``, ``bash``,
    ``javascript`` with the directory of its packages as `spec`, or ``jupyter`` with that of its kernelspec.
    """

    name: str
    kernel: str
    spec: str = ""

    def default(self) -> "Language":
        """The language that the default context of this kernel has."""
        return replace(self, name=JAVASCRIPT.name) if self.kernel == JAVASCRIPT.kernel else self


PYTHON = Language("python", "python")
BASH = Language("bash", "bash")
JAVASCRIPT = Language("javascript", "javascript")
_TYPESCRIPT = replace(JAVASCRIPT, name="typescript")
_OWN = {
    "python": PYTHON,
    "python3": PYTHON,
    "bash": BASH,
    "javascript": JAVASCRIPT,
    "js": JAVASCRIPT,
    "typescript": _TYPESCRIPT,
    "ts": _TYPESCRIPT,
}


class Languages:
    """The languages of this sandbox, as they are now: kernels may be installed at any time. `home`: where
    those of the user are. `node_modules`: where the packages of the JavaScript kernel are.
    """

    def __init__(self, home: str, node_modules: str) -> None:
        self._node_modules = node_modules
        self._directories = (f"{home}/.local/share/jupyter/kernels", *_KERNEL_DIRECTORIES)

    def missing_for_javascript(self) -> str | None:
        """What JavaScript needs and this sandbox has not, and what to do about it; None when it can run."""
        if not any(shutil.which(name, path=PATH) for name in ("node", "nodejs")):
            return "Node.js, which is not installed"
        if not Path(self._node_modules, "sucrase", "package.json").is_file():
            return (
                f"Sucrase in {self._node_modules}, which npm could not install when the template was built; "
                "see to it that the server's machine has npm and that it reaches a registry, then start the "
                "server again"
            )
        return None

    def find(self, name: str) -> Language:
        """The language called `name`, in any case: ours, or that of a kernelspec with this directory,
        language or display name. Raises KernelStartError, which names those there are.
        """
        wanted = name.lower()
        own = _OWN.get(wanted)
        if own is not None and own.kernel != JAVASCRIPT.kernel:
            return own
        missing = self.missing_for_javascript()
        if own is not None and missing is None:
            return replace(own, spec=self._node_modules)
        specs = []
        for directory, names, program in self._kernelspecs():
            absent = shutil.which(program, path=PATH) is None
            if wanted in names and absent:
                raise KernelStartError(
                    f"the kernel for {name!r} needs the program {program[:200]!r}, which is not installed"
                )
            if wanted in names:
                return Language(wanted, "jupyter", directory)
            specs += [] if absent else [names]
        raise KernelStartError(self._no_kernel(name, missing, [min(names, key=len) for names in specs]))

    def _no_kernel(self, name: str, missing: str | None, installed: list[str]) -> str:
        own = {language.name for language in _OWN.values() if not missing or language in (PYTHON, BASH)}
        known = ", ".join(sorted({*own, *installed}))
        reason = f"there is no kernel for the language {name!r} in this sandbox; it has {known}"
        if name.lower() in _OWN:
            reason += f". JavaScript and TypeScript need {missing}"
        return reason

    def _kernelspecs(self) -> Iterator[tuple[str, set[str], str]]:
        """The directory of each kernelspec, in lower case the names it goes by, and the program that it
        starts; the user's first.
        """
        for parent in self._directories:
            try:
                names = sorted(entry.name for entry in Path(parent).iterdir())
            except OSError:
                continue
            for name in names:
                directory = f"{parent}/{name}"
                spec = _read(f"{directory}/kernel.json")
                if spec is not None and (name.lower() not in _OWN):
                    also = (spec.get("language"), spec.get("display_name"))
                    yield (
                        directory,
                        {name.lower(), *(str(other).lower() for other in also if other)} - set(_OWN),
                        str(spec["argv"][0]),
                    )


def _read(path: str) -> dict[str, Any] | None:
    """A kernelspec, or None when the file is none. It may be the user's: nothing in it is trusted here."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            return None
        try:
            spec = json.loads(file.read(_LARGEST))
        except (ValueError, RecursionError):
            return None
    argv = spec.get("argv") if isinstance(spec, dict) else None
    return spec if argv and isinstance(argv, list) else None
