"""The entry point of `reprune` and of `python -m reprune`. Handles interrupts before the command line is imported."""

from __future__ import annotations

from reprune.doors.command.interrupts import heed_at_once, heed_no_more
from reprune.doors.printable import complain


def main() -> None:
    """Run the command line, whose import takes a moment. An interrupt after its end prints nothing."""
    heed_at_once(lambda: complain("interrupted"))
    try:
        from reprune.doors.command import cli

        cli.main()
    finally:
        heed_no_more()


if __name__ == "__main__":
    main()
