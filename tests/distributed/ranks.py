"""Scripts that run on several ranks, started as users start them."""

import os
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
with together(float(os.environ["LIMIT"])) as ranks:
"""


@contextmanager
def started(count, script, *words, limit=20, launcher=(), **settings):
    """Start Python code on `count` ranks; see that no process is left.

    Each rank has `ranks`, its communicator, and `say`, which prints a line. It waits `limit`
    seconds for the others at most.
    """
    mark = f"TINYALEX_TEST={uuid.uuid4()}"
    code = PRELUDE + textwrap.indent(textwrap.dedent(script), "    ")
    mpiexec = launcher or [str(Path(sys.executable).with_name("mpiexec"))]
    job = subprocess.Popen(
        [*mpiexec, "-n", str(count), sys.executable, "-c", code, *map(str, words)],
        env=environment(mark, LIMIT=limit, **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield job
        deadline = time.monotonic() + 1  # those killed last free their memory
        while (left := processes(mark)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not left
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


def processes(mark):
    """Return the processes with this setting in their environment, stopped ones included."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


@dataclass
class Ended:
    """What a job printed, line by line, and its exit code."""

    code: int
    out: list[str]
    err: str


def run(count, script, *words, seconds=SECONDS, **settings):
    """Run Python code on `count` ranks to its end, which must come within `seconds`."""
    with started(count, script, *words, **settings) as job:
        out, err = job.communicate(timeout=seconds)
    return Ended(job.returncode, out.splitlines(), err)


def said(count, script, *words, **settings):
    """Return what the ranks said, sorted, once all have ended well."""
    ended = run(count, script, *words, **settings)
    assert ended.code == 0, ended.err
    return sorted(ended.out)
