"""Variables in configuration: ``${VAR}``, ``${VAR:-default}``, ``${VAR:?message}``; ``$$`` is a dollar sign.

Only values that are already parsed are touched, so a variable's content can never change the structure of a
file. Errors name
the place and the variable, never a value.
"""

import re
from collections.abc import Mapping

from ringfence.core.errors import ConfigurationError

_VARIABLE = re.compile(
    r"\$(?:(?P<dollar>\$)|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}|(?P<bad>))"
)


def interpolate(text: str, environ: Mapping[str, str], where: str) -> str:
    """`text` with its variables replaced from `environ`; `where` names the value in errors
    (``servers.x.env.KEY``).
    """

    def replace(match: re.Match[str]) -> str:
        if match["dollar"]:
            return "$"
        name = match["name"]
        if name is None:
            raise ConfigurationError(
                f"{where}: a lone '$'; write ${{NAME}} for a variable or $$ for a dollar sign"
            )
        value = environ.get(name)
        if value or (value is not None and match["kind"] is None):
            return value
        if match["kind"] == "-":
            return match["rest"]
        message = match["rest"] or "it is not set"
        raise ConfigurationError(f"{where}: the variable {name} is needed: {message}")

    return _VARIABLE.sub(replace, text)
