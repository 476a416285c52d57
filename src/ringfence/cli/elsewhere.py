"""Which server the commands about sandboxes and templates ask, and as whom."""

from typing import Any

import click

from ringfence.core.config import load_settings
from ringfence.integrations.backend import backend_elsewhere


def sdk_options() -> dict[str, Any]:
    """The SDK's connection options for the server, or E2B's cloud, that the settings name.

    Raises ConfigurationError for settings that contradict each other, and click.ClickException when they name
    no server: the embedded one belongs to the process that started it.
    """
    options = named_options()
    if options is None:
        raise click.ClickException(
            "no server is named: set RINGFENCE_URL and RINGFENCE_API_KEY to those of a `ringfence serve`, or "
            "E2B_API_KEY. (Sandboxes of ringfence mcp and run belong to those processes and end with them.)"
        )
    return options


def named_options() -> dict[str, Any] | None:
    """The same; None when the settings name no server."""
    settings = load_settings()
    name = settings.choose_backend()
    return None if name == "local" else backend_elsewhere(settings, name).sdk_options()
