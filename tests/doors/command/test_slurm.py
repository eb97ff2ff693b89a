"""The job script of the docs' page on clusters runs on a Slurm of two nodes, both on this machine."""

from __future__ import annotations

import getpass
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import reprune
from tests.doors.conftest import QUICK
from tests.engine import together
from tests.test_docs import ROOT

_NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
_PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"])
BOUND = 120
"""Seconds within which anything must have happened."""
_CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={machine}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
NodeName={machine} NodeHostname={machine} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName={machine}-b NodeHostname={machine} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=ALL Default=YES
"""


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """A cluster of two nodes: the environment that its commands need."""
    if any(shutil.which(name, path=_PATH) is None for name in _NEEDED):
        pytest.skip("Slurm is not installed")
    machine = socket.gethostname()
    try:
        socket.gethostbyname(machine)
    except OSError:
        pytest.skip("this machine does not know its own name")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a socket's path must be short
    ports = [together.free_port() for _ in range(3)]
    configuration = folder / "slurm.conf"
    configuration.write_text(_CONFIGURATION.format(machine=machine, user=getpass.getuser(), folder=folder, ports=ports))
    (folder / "key").write_bytes(secrets.token_bytes(128))
    (folder / "key").chmod(0o600)
    for name in ("state", machine, f"{machine}-b"):
        (folder / name).mkdir()
    environment = {**os.environ, "PATH": _PATH, "SLURM_CONF": str(configuration)}
    places = {
        "key-file": "key",
        "socket": "socket",
        "pid-file": "munged.pid",
        "log-file": "munged.log",
        "seed-file": "seed",
    }
    try:
        for daemon in (
            ["munged", "--force", *(f"--{name}={folder / file}" for name, file in places.items())],
            ["slurmctld", "-f", str(configuration)],
            *(["slurmd", "-f", str(configuration), "-N", node] for node in (machine, f"{machine}-b")),
        ):
            said = subprocess.run(daemon, env=environment, capture_output=True, text=True, check=False)
            if said.returncode:
                pytest.skip(f"this process may not start {daemon[0]}: {said.stderr.strip()}")
        until = time.monotonic() + 30
        while _ask(environment, "sinfo", "--noheader", "--format", "%D %t") != "2 idle":
            if time.monotonic() > until:
                pytest.skip("Slurm's nodes do not come up")
            time.sleep(0.2)
        yield environment
    finally:
        _ask(environment, "scancel", "--user", getpass.getuser())
        for pid in folder.glob("*.pid"):
            with suppress(ProcessLookupError):
                os.kill(int(pid.read_text()), signal.SIGTERM)
        shutil.rmtree(folder, ignore_errors=True)


def _ask(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout.strip()


def _job(more: str) -> str:
    """The page's script, adapted to nodes of one core and a quick run."""
    page = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for theirs, here in (
        (" --gpus-per-node 8", ""),
        ("--nproc-per-node 8", "--nproc-per-node 1"),
        (":29500", f":{together.free_port()}"),
        ("my-model", "llama"),
        ("--reconstruct BR+GP", f"--reconstruct BR+GP {' '.join(QUICK)} {more}"),
    ):
        assert script.count(theirs) == 1, theirs
        script = script.replace(theirs, here)
    return script


def _submit(environment: dict[str, str], here: Path, more: str) -> str:
    (here / "job.sh").write_text(_job(more))
    own = {**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(together.SOURCES)}
    command = ["sbatch", "--parsable", "--output", "said.txt", "job.sh"]
    said = subprocess.run(command, cwd=here, env=own, capture_output=True, text=True, check=True)
    return said.stdout.strip()


def _until_ended(environment: dict[str, str], job: str, here: Path) -> str:
    """The output of the job, after it has ended."""
    until = time.monotonic() + BOUND
    while _ask(environment, "squeue", "--noheader", "--job", job):
        assert time.monotonic() < until, (here / "said.txt").read_text()
        _ask(environment, "scontrol", "update", f"JobId={job}", "StartTime=now")  # instead of in two minutes
        time.sleep(0.5)
    return (here / "said.txt").read_text()


def test_a_job_that_is_requeued_goes_on_where_it_was(slurm: dict[str, str], here: Path) -> None:
    job = _submit(slurm, here, "--epochs 60 --set guard=off")
    ledger, until = here / "by-slurm" / ".reprune" / "ledger.jsonl", time.monotonic() + BOUND
    while not ledger.exists():
        assert time.monotonic() < until, (here / "said.txt").read_text()
        time.sleep(0.05)
    subprocess.run(["scontrol", "requeue", job], env=slurm, check=True)
    finished = reprune.status(here / "by-slurm").windows_done
    said = _until_ended(slurm, job, here)
    assert f"going on: {finished} of 3 windows are finished" in said or f"going on: {finished + 1} of 3" in said
    assert "Traceback" not in said
    assert '"ranks": 2' in (here / "by-slurm" / "reprune.json").read_text()
    assert reprune.verify(here / "by-slurm").passed
