"""Scripts that run on several ranks, started as users start them."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

PACKAGE = Path(__file__).parents[2]
SECONDS = 60.0


def start(count, script, *words, **settings):
    """Start Python code on `count` ranks; each has `ranks`, its communicator, and NumPy as `np`."""
    code = PRELUDE + textwrap.indent(textwrap.dedent(script), "    ")
    mpiexec = str(Path(sys.executable).with_name("mpiexec"))
    return subprocess.Popen(
        [mpiexec, "-n", str(count), sys.executable, "-c", code, *map(str, words)],
        env=environment(**settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


PRELUDE = """\
import os, signal, sys, time
import numpy as np
from tinyalex.distributed.launch import together
def say(*words):  # in one piece
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
with together(float(os.environ.get("LIMIT", "20"))) as ranks:
"""


def environment(**settings):
    path = os.pathsep.join([str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **{n: str(value) for n, value in settings.items()}}


def run(count, script, *words, **settings):
    """Return what the ranks printed, sorted by line, once all have ended well."""
    with start(count, script, *words, **settings) as job:
        try:
            out, err = job.communicate(timeout=SECONDS)
        finally:
            job.kill()
    assert job.returncode == 0, err
    return sorted(out.splitlines())
