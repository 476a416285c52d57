"""Ringfence: secure, stateful execution of code written by AI agents."""

__version__ = "0.1.0"
