"""Templates: root filesystems that sandboxes start from, built once into a cache.

`ensure_template` is the whole interface; `BUILTIN` has the definitions it can build.
"""

from ringfence.engine.templates.build import ensure_template
from ringfence.engine.templates.builtin import BUILTIN, DEFAULT_TEMPLATE, Definition, definition_of

__all__ = ["BUILTIN", "DEFAULT_TEMPLATE", "Definition", "definition_of", "ensure_template"]
