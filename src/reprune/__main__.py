"""`python -m reprune` is `reprune`."""

from reprune.doors.cli import main

main()
