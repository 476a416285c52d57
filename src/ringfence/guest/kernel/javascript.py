"""A JavaScript kernel: this process becomes the sandbox's Node, which runs the program beside this module."""

import json
import os
import pkgutil
import shutil
from typing import NoReturn

from .channel import Channel

_MODULES = ("kernel", "channel", "display", "interrupts", "modules")
_CONTROL_FD = 3
_PROGRAM_FD = 4
_PACKAGES = "/usr/local/lib/node_modules:/usr/lib/node_modules:/usr/share/nodejs"

# The kernel's modules, from the descriptor they are on; they may not be files, for in the sandbox there are
# none. Only a script that Node itself was given can import.
_BOOTSTRAP = """
'use strict';
{
  const fs = require('node:fs');
  const { Script } = require('node:vm');
  const [program, control] = process.argv.slice(1, 3).map(Number);
  const packages = process.argv[3];
  const sources = JSON.parse(fs.readFileSync(program, 'utf8'));
  fs.closeSync(program);
  process.argv.splice(1);
  process.execArgv.splice(0);
  const own = require;
  const loaded = {};
  const load = (name) => {
    if (!(name in loaded)) {
      const wrapped = `(function (require, module, exports, load, control, packages) {${sources[name]}\\n})`;
      const run = new Script(wrapped, { filename: `ringfence:${name}` }).runInThisContext();
      const module = { exports: {} };
      loaded[name] = module;
      run(own, module, module.exports, load, control, packages);
    }
    return loaded[name].exports;
  };
  load.import = (specifier) => import(specifier);
  load('kernel');
}
"""


def _sources() -> dict[str, str]:
    found = {name: pkgutil.get_data(__package__, f"javascript/{name}.js") for name in _MODULES}
    return {name: data.decode() for name, data in found.items() if data is not None}


_SOURCES = _sources()


def run(channel: Channel, packages: str) -> NoReturn:
    """Replace this process by Node as a kernel on the channel's connection; `packages`: the directory where
    it finds Sucrase. Raises OSError when there is no Node.
    """
    node = shutil.which("node") or shutil.which("nodejs")
    if node is None:
        os.write(2, b"there is no Node.js in this sandbox, which JavaScript needs\n")
        os._exit(127)
    os.environ.setdefault("NODE_PATH", _PACKAGES)
    memory = os.memfd_create("kernel", 0)
    with open(memory, "w", encoding="utf-8", closefd=False) as file:
        json.dump(_SOURCES, file)
    os.lseek(memory, 0, os.SEEK_SET)
    control = os.dup(channel.fileno())
    # Low, because Node marks only low ones to be closed in what it starts.
    for source, target in ((memory, _PROGRAM_FD + 8), (control, _CONTROL_FD + 8)):
        os.dup2(source, target)
    os.dup2(_PROGRAM_FD + 8, _PROGRAM_FD)
    os.dup2(_CONTROL_FD + 8, _CONTROL_FD)
    os.closerange(_PROGRAM_FD + 1, _PROGRAM_FD + 9)
    os.execve(  # noqa: S606
        node, [node, "-e", _BOOTSTRAP, str(_PROGRAM_FD), str(_CONTROL_FD), packages], dict(os.environ)
    )
