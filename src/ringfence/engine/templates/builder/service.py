"""The start command of a template: the service that runs in each of its sandboxes, and when it is up."""

import asyncio
import time

from ringfence.core.errors import TemplateError
from ringfence.engine.model import Template
from ringfence.engine.templates.builder.guest import Command, Guest, GuestError

BUILD_TIMEOUT = 600.0
"""Seconds a service may take to be ready while a template is built."""
CREATE_TIMEOUT = 30.0
"""Seconds a new sandbox waits for its service; it is handed out not ready after that."""
_POLL = 0.1
_LONGEST_POLL = 2.0
_SETTLE = 0.2


async def start_service(guest: Guest, template: Template) -> None:
    """Start the template's start command, if it has one. Raises TemplateError when it cannot be started."""
    if not template.start_cmd:
        return
    try:
        await guest.start(_command(template, template.start_cmd))
    except GuestError as error:
        raise TemplateError(f"failed to run start command '{template.start_cmd}': {error}") from error


async def wait_ready(guest: Guest, template: Template, seconds: float) -> bool:
    """Wait until the template's ready command succeeds; false when it did not in `seconds`."""
    if not template.ready_cmd:
        await asyncio.sleep(_SETTLE)
        return True
    deadline = time.monotonic() + seconds
    pause = _POLL
    while True:
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                if not await guest.run(_command(template, template.ready_cmd)):
                    return True
                await asyncio.sleep(pause)
        except TimeoutError:
            return False
        except GuestError as error:
            raise TemplateError(f"failed to run ready command '{template.ready_cmd}': {error}") from error
        pause = min(pause * 1.5, _LONGEST_POLL)


def _command(template: Template, line: str) -> Command:
    environment = dict(template.build_env)
    return Command(line, template.default_user, template.default_workdir, environment, template.shell)
