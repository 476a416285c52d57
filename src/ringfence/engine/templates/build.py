"""Put a template together from its layers, building those that the cache does not have."""

import os
from pathlib import Path

from ringfence.core.errors import TemplateError
from ringfence.engine.model import Layer, Template
from ringfence.engine.templates.builtin import Definition, definition_of
from ringfence.engine.templates.cache import LayerCache, Progress, digest
from ringfence.engine.templates.environment import build_environment, compile_tree, read_packages
from ringfence.engine.templates.interpreter import (
    INSIDE_PREFIX,
    Interpreter,
    copy_interpreter,
    find_interpreter,
)
from ringfence.engine.templates.node import ensure_node_modules
from ringfence.engine.templates.skeleton import host_root_directories, plan_skeleton
from ringfence.engine.templates.tools import ensure_tools, own_tools

# Part of every key: raise it when the code of this package makes other layers from the same input.
_LAYOUT = 1


def ensure_template(
    name: str, cache_dir: Path, progress: Progress = lambda _: None, *, python: Path | None = None
) -> Template:
    """The built-in template `name`, built into `cache_dir` if it is not there yet. Blocks; safe in several
    processes at once.

    progress: called with a sentence whenever something noteworthy happens; often enough to show that work
        goes on.
    python: the interpreter to build for; None: ``RINGFENCE_TEMPLATE_PYTHON``, else the one that runs this.
    Raises `TemplateError` when the name is unknown or a part cannot be built; nothing half-built is left or
    used.
    """
    definition = definition_of(name)
    interpreter = find_interpreter(python)
    try:
        cache = LayerCache(cache_dir.absolute() / "templates")
        cache.sweep()
        return _assemble(definition, interpreter, cache, progress)
    except OSError as error:
        raise TemplateError(f"template {name} could not be built in {cache_dir}: {error}") from error


def _assemble(
    definition: Definition, interpreter: Interpreter, cache: LayerCache, progress: Progress
) -> Template:
    environment_key = _environment_key(definition, interpreter)
    template_id = digest(_LAYOUT, definition, environment_key)[:20]
    root_layers = [_ensure_skeleton(definition, template_id, cache, progress)]
    if not interpreter.in_place:
        root_layers.append(_ensure_interpreter(interpreter, cache, progress))
    environment = _ensure_environment(definition, environment_key, interpreter, cache, progress)
    tools = (ensure_tools(cache, progress), *ensure_node_modules(cache, progress))
    host = [
        Layer(directory, (*own_tools(tools, directory), Path(directory)))
        for directory in host_root_directories()
    ]
    return Template(
        template_id=template_id,
        name=definition.name,
        layers=(Layer("/", tuple(root_layers)), *host, Layer("/usr/local", (environment / "tree",))),
        python="/usr/local/bin/python3",
        preload=definition.preload,
        env=dict(definition.env),
        packages=read_packages(environment),
        python_version=interpreter.version,
    )


def _environment_key(definition: Definition, interpreter: Interpreter) -> str:
    owners = os.geteuid() == 0
    return digest(_LAYOUT, definition.requirements_text(), interpreter.key(), interpreter.inside, owners)


def _ensure_skeleton(definition: Definition, template_id: str, cache: LayerCache, progress: Progress) -> Path:
    plan = plan_skeleton(template_id, definition.name)
    layer = cache.ensure("skeleton", plan.key(), lambda work, _: plan.write(work / "tree"), progress)
    return layer / "tree"


def _ensure_interpreter(interpreter: Interpreter, cache: LayerCache, progress: Progress) -> Path:
    def build(work: Path, lock: int) -> None:
        progress(f"copying Python {interpreter.version} from {interpreter.prefix}")
        tree = work / "tree"
        (tree / "opt").mkdir(parents=True, mode=0o755)
        copy_interpreter(interpreter, tree)
        compile_tree(tree / INSIDE_PREFIX[1:], INSIDE_PREFIX, interpreter, lock, progress)

    return cache.ensure("python", digest(_LAYOUT, interpreter.key()), build, progress) / "tree"


def _ensure_environment(
    definition: Definition, key: str, interpreter: Interpreter, cache: LayerCache, progress: Progress
) -> Path:
    def build(work: Path, lock: int) -> None:
        progress(f"building template {definition.name} for Python {interpreter.version}; this is done once")
        build_environment(work, definition.requirements_text(), interpreter, lock, progress)

    return cache.ensure("environment", key, build, progress)
