"""Which template a name stands for, and what of a built template is kept."""

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringfence.engine.model import Layer, Limits, Template
from ringfence.server.templates.names import DEFAULT_TAG
from ringfence.server.templates.store import BuildRow, TemplateRow, TemplateStore

if TYPE_CHECKING:
    from ringfence.engine.engine import Engine

logger = logging.getLogger(__name__)

# The images of E2B's own templates: what they are here is there without a registry.
OWN_IMAGES = {"e2bdev/base": "base", "e2bdev/code-interpreter": "code-interpreter-v1"}


class Catalog:
    """Built-in templates, which are everybody's, and each owner's own."""

    def __init__(self, engine: "Engine", store: TemplateStore) -> None:
        self._engine = engine
        self._store = store

    def load(self) -> None:
        """Put what was built in earlier runs into service; with a warning for what lacks its files."""
        for row in self._store.ready_builds():
            if row.result is None:
                continue
            root, template = parse(row.result)
            if root is not None:
                if not all(path.is_dir() for layer in root.layers for path in layer.lowers):
                    logger.warning("template %s is unusable: the files of its image are gone", template.name)
                    continue
                self._engine.built.add(root)
            elif template.root not in self._engine.templates:
                logger.warning("template %s is unusable: it stands on %s", template.name, template.root)
                continue
            self._engine.built.add(template)

    def resolve(self, owner: str, name: str) -> Template | None:
        """The template that the owner means by `name`: a name or an id, perhaps with a tag."""
        base, _, tag = name.partition(":")
        row = self.row(owner, base)
        if row is not None:
            return self.tagged(row, tag or DEFAULT_TAG)
        if self.builtin(base) is not None:
            return self.builtin(base) if tag in ("", DEFAULT_TAG, "latest") else None
        shared = self.shared(base)
        return None if shared is None else self.tagged(shared, tag or DEFAULT_TAG)

    def shared(self, template_id: str) -> TemplateRow | None:
        """A template that its owner has made public. By its id only: a name is its owner's to give."""
        row = self._store.by_id(template_id)
        return row if row is not None and row.public else None

    def row(self, owner: str, name_or_id: str) -> TemplateRow | None:
        """The owner's own template with this name or id."""
        found = self._store.template(owner, name_or_id)
        if found is None:
            found = self._store.template(owner, name_or_id.lower())
        return found

    def builtin(self, name: str) -> Template | None:
        """The built-in template with this name or id."""
        found = self._engine.templates.get(name)
        return found or next((t for t in self._engine.templates.values() if t.template_id == name), None)

    def tagged(self, row: TemplateRow, tag: str) -> Template | None:
        """The build of a template that `tag` names. Without a default one, that is the newest."""
        tags = {entry.tag: entry.build_id for entry in self._store.tags(row.template_id)}
        build_id = tags.get(tag)
        if build_id is None and tag == DEFAULT_TAG and tags:
            build_id = list(tags.values())[-1]
        return None if build_id is None else self._engine.built.get(build_id)

    def latest(self, row: TemplateRow) -> BuildRow | None:
        """A template's newest build, whatever became of it."""
        builds = self._store.builds(row.template_id)
        return builds[-1] if builds else None


def dump(template: Template, root: Template | None) -> dict[str, Any]:
    """A built template as JSON; `root` is the image it stands on, None when that is a built-in template."""
    return {
        "template": dataclasses.asdict(dataclasses.replace(template, layers=())),
        "image": None if root is None else _dump_root(root),
    }


def parse(result: dict[str, Any]) -> tuple[Template | None, Template]:
    """What `dump` has written: the image it stands on, and the template."""
    image = result["image"]
    root = None
    if image is not None:
        layers = tuple(Layer(entry["target"], tuple(map(Path, entry["lowers"]))) for entry in image["layers"])
        root = Template(image["template_id"], image["name"], layers, "", env=image["env"])
    fields = {**result["template"], "layers": (), "limits": Limits(**result["template"]["limits"])}
    for name in ("preload", "snapshots"):
        fields[name] = tuple(fields[name])
    return root, Template(**fields)


def _dump_root(root: Template) -> dict[str, Any]:
    layers = [
        {"target": layer.target, "lowers": [str(path) for path in layer.lowers]} for layer in root.layers
    ]
    return {"template_id": root.template_id, "name": root.name, "env": root.env, "layers": layers}
