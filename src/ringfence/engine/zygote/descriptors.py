"""The descriptors that a request for a sandbox carries."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Descriptors:
    """What the launcher passes in, in this order."""

    report: int
    template_ns: int
    sandbox_ns: int
    http: int
    tunnel: int
    nursery: int
    egress: int
    lifeline: int
    words: int
    counters: tuple[int, ...]
    procs: tuple[int, ...]
    disk: int | None

    @classmethod
    def of(cls, fds: list[int], counters: int, has_disk: bool) -> "Descriptors":
        """Name the descriptors of a request; the writable layer of an earlier life, if any, comes last."""
        disk = fds.pop() if has_disk else None
        report, template_ns, sandbox_ns, http, tunnel, nursery, egress, lifeline, words, *rest = fds
        numbers = tuple(rest)
        return cls(
            report, template_ns, sandbox_ns, http, tunnel, nursery, egress, lifeline, words,
            numbers[:counters], numbers[counters:], disk,
        )  # fmt: skip
