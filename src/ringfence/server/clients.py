"""Which SDK a request comes from, by its ``User-Agent``: so that one this server does not know is no riddle.

The error shape is the same for all of them; what differs is what they may ask for.
"""

import logging
import re

from ringfence.server.headers import Headers

logger = logging.getLogger(__name__)

TRIED = {"e2b-python-sdk": (2, 63, 0), "e2b-js-sdk": (2, 51, 0)}
"""The newest version of each SDK that the tests were run with."""

_AGENT = re.compile(r"^(e2b-python-sdk|e2b-js-sdk)/([0-9]{1,4})\.([0-9]{1,4})\.([0-9]{1,4})")
_MAX_SEEN = 100

Version = tuple[int, int, int]


def sdk_of(headers: Headers) -> tuple[str, Version] | None:
    """The name and version of the SDK that sent `headers`; None when it is none that is known."""
    agent = next((value for name, value in headers if name == b"user-agent"), b"").decode("latin-1")
    match = _AGENT.match(agent)
    return (match[1], (int(match[2]), int(match[3]), int(match[4]))) if match else None


def remark(headers: Headers) -> str:
    """What to add to a refusal of something unknown: that the SDK is newer than those that were tried."""
    sdk = sdk_of(headers)
    if sdk is None or sdk[1] <= TRIED[sdk[0]]:
        return ""
    return f"; {sdk[0]} {_text(sdk[1])} is newer than {_text(TRIED[sdk[0]])}, the newest this server knows"


class Clients:
    """Tells the operator once of every version of an SDK that is seen."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, Version]] = set()

    def note(self, headers: Headers) -> None:
        """Take note of who sent `headers`."""
        sdk = sdk_of(headers)
        if sdk is None or sdk in self._seen or len(self._seen) >= _MAX_SEEN:
            return
        self._seen.add(sdk)
        newer = remark(headers)
        logger.log(
            logging.WARNING if newer else logging.INFO, "%s %s is used%s", sdk[0], _text(sdk[1]), newer
        )


def _text(version: Version) -> str:
    return ".".join(map(str, version))
