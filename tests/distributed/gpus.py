"""Ranks on GPUs that the stand-in plays.

``python gpus.py python SCRIPT ...`` runs a script on such GPUs. A host has as many as the setting
``GPUS`` says.
"""

import os
import runpy
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
BEFORE = f"""
sys.path[:0] = {[str(TESTS), str(TESTS / "support"), str(TESTS / "distributed")]}
import gpus
gpus.install()
import cupy
"""
"""Code for ranks to begin with."""


def install():
    """Let this process find the stand-in."""
    from simt import memory, standin

    memory.DEVICES = int(os.environ.get("GPUS", 8))
    standin.install()


if __name__ == "__main__":
    sys.path[:0] = [str(TESTS), str(TESTS / "support")]
    install()
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
