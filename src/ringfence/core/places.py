"""Where things of the user's are kept."""

from collections.abc import Callable
from pathlib import Path

from ringfence.core.errors import ConfigurationError


def of_the_user(find: Callable[[str], Path], variable: str) -> Path:
    """Our directory by `find`, one of platformdirs'. A `ConfigurationError` names `variable` for a user who
    has no home directory, as in some containers.
    """
    try:
        path = find("ringfence")
    except RuntimeError:
        path = Path()
    if not path.is_absolute():
        raise ConfigurationError(f"this user has no home directory: set {variable} to a directory, or HOME")
    return path
