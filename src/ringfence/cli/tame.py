"""Text from elsewhere, for a terminal."""


def tame(text: str) -> str:
    """Without what a terminal would obey; the text may come from anywhere."""
    return "".join(char for char in text if char.isprintable() or char in "\n\t")
