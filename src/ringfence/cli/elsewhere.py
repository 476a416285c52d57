"""Which server the commands about sandboxes and templates ask, and as whom."""

from typing import Any

import click

from ringfence.core.config import load_settings


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
    backend = settings.choose_backend()
    timeout = {"request_timeout": settings.request_timeout, "debug": False}
    if backend == "remote" and settings.api_key is not None:
        key = settings.api_key.get_secret_value()
        return {"api_url": settings.url, "sandbox_url": settings.url, "api_key": key, **timeout}
    if backend == "e2b" and settings.e2b_api_key is not None:
        given = {
            "api_url": settings.e2b_api_url,
            "sandbox_url": settings.e2b_sandbox_url,
            "domain": settings.e2b_domain,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        return {"api_key": settings.e2b_api_key.get_secret_value(), **chosen, **timeout}
    return None
