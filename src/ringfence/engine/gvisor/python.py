"""Where our own Python and its packages lie, and where the container's root has them.

Inside, neutral paths: an interpreter often lives in somebody's home. A relocated Python finds its standard
library from the path of its program.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

_PYTHON = "/python"
_CODE = "/code"
_SYSTEM = ("/usr",)
_TOP_LEVEL = ("lib", "lib32", "lib64", "libx32", "bin", "sbin")


@dataclass(frozen=True)
class HostPython:
    """Our own Python as seen in the container's root.

    executable, search: paths inside. binds: (host's directory, directory inside) to be shown read-only.
    links: symbolic links of the root directory, as on a host whose ``/lib`` leads to ``/usr/lib``.
    """

    executable: str
    search: tuple[str, ...]
    binds: tuple[tuple[str, str], ...]
    links: tuple[tuple[str, str], ...]

    @classmethod
    def of_this_process(cls) -> "HostPython":
        """The Python that runs this."""
        base = os.path.realpath(sys.base_prefix)
        system = base in _SYSTEM
        prefix = base if system else _PYTHON
        binds = [(path, path) for path in _SYSTEM] + ([] if system else [(base, _PYTHON)])
        links = []
        for name in _TOP_LEVEL:
            path = f"/{name}"
            if os.path.islink(path):
                links.append((path, os.readlink(path)))
            elif os.path.isdir(path):
                binds.append((path, path))
        search, count = [], 0
        for entry in map(os.path.realpath, sys.path):
            if not os.path.isdir(entry):
                continue
            known = next((place for place in (base, *_SYSTEM) if Path(entry).is_relative_to(place)), None)
            if known is None:
                search.append(f"{_CODE}/{count}")
                binds.append((entry, f"{_CODE}/{count}"))
                count += 1
            else:
                search.append(entry.replace(base, prefix, 1) if known == base else entry)
        program = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
        return cls(program.replace(base, prefix, 1), tuple(search), tuple(binds), tuple(links))

    @property
    def env(self) -> dict[str, str]:
        """Variables it needs to find its shared library."""
        prefix = self.executable.rpartition("/bin/")[0]
        return {"LD_LIBRARY_PATH": f"{prefix}/lib"} if prefix == _PYTHON else {}
