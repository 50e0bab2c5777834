"""Scripts that run on several ranks, started as users start them."""

import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[2]
SECONDS = 60.0

PRELUDE = """\
import os, signal, sys, time
import numpy as np
from tinyalex.distributed.launch import together
def say(*words):  # in one piece
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
exec(os.environ.get("BEFORE", ""))
with together(float(os.environ["LIMIT"])) as ranks:
"""


@contextmanager
def started(count, script, *words, limit=20, network=None, options=(), **settings):
    """Start Python code on `count` ranks; see that no process is left.

    Each rank has `ranks`, its communicator, and `say`, which prints a line. It waits `limit`
    seconds for the others at most, and does first what the setting `BEFORE` says. Ranks are on the
    hosts of a network, or all here. Processes of a launcher beyond a cut link may stay: they wait
    for the network.
    """
    mark = f"TINYALEX_TEST={uuid.uuid4()}"
    code = PRELUDE + textwrap.indent(textwrap.dedent(script), "    ")
    mpiexec = [str(Path(sys.executable).with_name("mpiexec")), *options]
    if network:
        mpiexec, settings = network.launcher(mpiexec), {**settings, "UCX_TLS": "tcp,self"}
    job = subprocess.Popen(
        [*mpiexec, "-n", str(count), sys.executable, "-c", code, *map(str, words)],
        env=environment(mark, LIMIT=limit, **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield job
        job.wait(timeout=SECONDS)
        # Those killed last free their memory; those beyond a cut link have a limit of their own.
        deadline = time.monotonic() + (limit + 2 if network else 1)
        while (left := processes(mark, network)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not left, left
    finally:
        for pid in processes(mark):
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        job.communicate()


def environment(*assignments, **settings):
    path = os.pathsep.join([str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])])
    more = dict(word.split("=", 1) for word in assignments)
    settings = {name: str(value) for name, value in settings.items()}
    return {**os.environ, "PYTHONPATH": path, **more, **settings}


def processes(mark, only_ranks=False):
    """Return the processes with this setting in their environment, stopped ones included."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes()
            marked = mark.encode() in (folder / "environ").read_bytes().split(b"\0")
            if marked and not (only_ranks and b"hydra_pmi_proxy" in words):
                found[int(folder.name)] = words
    return found


@dataclass
class Ended:
    """Output lines of a job, and its exit code."""

    code: int
    out: list[str]
    err: str


def run(count, script, *words, seconds=SECONDS, **settings):
    """Run Python code on ranks to its end."""
    with started(count, script, *words, **settings) as job:
        out, err = job.communicate(timeout=seconds)
    return Ended(job.returncode, out.splitlines(), err)


def said(count, script, *words, **settings):
    """Return what the ranks said, sorted, once all have ended well."""
    ended = run(count, script, *words, **settings)
    assert ended.code == 0, ended.err
    return sorted(ended.out)


def wait_for(job, count):
    """Wait until `count` ranks are ready; return the lines before."""
    lines = []
    while lines.count("ready") < count:
        line = job.stdout.readline()
        assert line, job.stderr.read()
        lines.append(line.strip())
    return [line for line in lines if line != "ready"]


def pause(job, count, seconds):
    """Stop all ranks, which have printed their process ids, for seconds."""
    pids = list(map(int, wait_for(job, count)))
    time.sleep(0.5)
    for number, passing in ((signal.SIGSTOP, seconds), (signal.SIGCONT, 0)):
        for pid in pids:
            os.kill(pid, number)
        time.sleep(passing)
