"""Logging to standard error; standard output belongs to programs (the MCP protocol, ``ringfence run``)."""

import logging
import sys


def configure_logging(level: str = "WARNING") -> None:
    """Send Ringfence's log to standard error at `level` (a name of the `logging` module)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("ringfence")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
