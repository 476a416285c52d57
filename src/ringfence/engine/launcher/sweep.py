"""Removes what launchers that were killed have left: cgroups, with whatever is still in them.

A program of its own, because it needs the launcher's privilege and the engine has none.
"""

from ringfence.engine.isolation import cgroups


def main() -> None:
    """Entry point of the process."""
    driver = cgroups.detect()
    driver.sweep()
    driver.remove()


if __name__ == "__main__":
    main()
