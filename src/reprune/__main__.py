"""`python -m reprune` is `reprune`."""

from reprune.doors.command.cli import main

main()
