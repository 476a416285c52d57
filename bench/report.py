"""What every benchmark has: arguments, and a file for its figures."""

import argparse
import json
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent.parent / "out" / "bench"


def asked(description: str | None, **defaults: int | str) -> argparse.Namespace:
    """The command line's arguments: an option for each of `defaults`, of the same type."""
    parser = argparse.ArgumentParser(
        description=(description or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=" ")
    return parser.parse_args()


def write(name: str, figures: dict[str, Any]) -> None:
    """Write the figures to ``out/bench/<name>.json``, and say so."""
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"{name}.json"
    path.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\nwritten to {path}")
