"""Output of code, bounded in memory and cut for a model: head and tail, with exact counts."""

KEEP_HEAD = 4 * 1024 * 1024
KEEP_TAIL = 256 * 1024


class Output:
    """Text that arrives in pieces. Of more than `KEEP_HEAD` characters only the first and the last part
    are kept.
    """

    def __init__(self) -> None:
        self.total = 0
        self._head: list[str] = []
        self._head_size = 0
        self._tail = ""

    def append(self, text: str) -> None:
        """Add `text` at the end."""
        self.total += len(text)
        room = KEEP_HEAD - self._head_size
        if room > 0:
            self._head.append(text[:room])
            self._head_size += len(self._head[-1])
            text = text[room:]
        if text:
            self._tail = (self._tail + text)[-KEEP_TAIL:]

    @property
    def text(self) -> str:
        """Everything that was kept, with a mark where something is missing."""
        missing = self.total - self._head_size - len(self._tail)
        mark = f"\n… {missing} characters are not kept …\n" if missing else ""
        return "".join(self._head) + mark + self._tail

    def last_line(self, limit: int = 200) -> str:
        """The last line that is not empty, at most `limit` characters of it."""
        recent = self._tail or "".join(self._head[-20:])[-4096:]
        lines = [line for line in recent.splitlines() if line.strip()]
        return lines[-1].strip()[-limit:] if lines else ""


def shorten(text: str, limit: int) -> tuple[str, int]:
    """`text` cut to about `limit` characters, and how many are missing.

    Two thirds are from its head, the rest from its tail. Cuts fall on line ends where one is near.
    """
    if len(text) <= limit:
        return text, 0
    head = text[: limit * 2 // 3]
    tail = text[len(text) - (limit - len(head)) :]
    if (end := head.rfind("\n")) > len(head) * 3 // 4:
        head = head[: end + 1]
    if 0 <= (start := tail.find("\n")) < len(tail) // 4:
        tail = tail[start + 1 :]
    missing = len(text) - len(head) - len(tail)
    lines = text.count("\n", len(head), len(text) - len(tail))
    mark = f"… {missing} characters ({lines} line ends) left out …"
    return f"{head}{'' if head.endswith(chr(10)) else chr(10)}{mark}\n{tail}", missing


def size_text(size: int) -> str:
    """A size in bytes as people write it: ``1.2 MB``."""
    amount = float(size)
    for unit in ("B", "KB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"
