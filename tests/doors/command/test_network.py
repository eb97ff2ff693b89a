"""No command opens a connection that was not asked for: local models and texts need none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.doors.conftest import QUICK

_CODE = """
import sys

def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        print("network:", event, args[1:], file=sys.stderr, flush=True)
        raise OSError("sockets are closed")

sys.addaudithook(watch)
from reprune.doors.command.cli import main

for line in sys.argv[1:]:
    try:
        main(line.split())
    except SystemExit as end:
        assert end.code == 0, line
"""


def test_all_commands_work_with_sockets_closed(here: Path) -> None:
    quick = " ".join(QUICK)
    commands = [
        f"plan llama {quick}",
        f"prune llama --out out --reconstruct BR+GP {quick} -q",
        "status out",
        "verify out",
        "evaluate out --text text.txt --seqlen 32 --windows 4 --against llama",
        "report out",
        "generate llama --out own.jsonl --samples 2 --length 24 --language any --filters none",
        f"study llama --out grid --pruners wanda --rungs LR --text text.txt {quick}",
    ]
    allowed = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    said = subprocess.run(
        [sys.executable, "-c", _CODE, *commands], cwd=here, env=allowed, capture_output=True, text=True, check=False
    )
    assert "network:" not in said.stderr
    assert said.returncode == 0, said.stderr
