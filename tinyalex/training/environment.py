"""The environment of a run, for its header and its run.json."""

from __future__ import annotations

import datetime
import functools
import platform
import re
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from tinyalex.backends import current_backend, of
from tinyalex.backends.devices import describe, parse
from tinyalex.calls import command_line
from tinyalex.threads import description, get_num_threads
from tinyalex.version import __version__


def environment(device: str = "cpu") -> dict[str, Any]:
    """Return versions and hardware that a run's numbers may depend on."""
    device = parse(device)
    return {
        "tinyalex": __version__,
        "commit": commit(),
        "backend": current_backend() if device == "cpu" else "cuda",
        "device": device,
        **describe(device),
        "threads": get_num_threads(),
        "threading": _threading(device),
        "blas": _blas(),
        "python": platform.python_version(),
        "numpy": _version("numpy"),
        "ml_dtypes": _version("ml_dtypes"),  # without it, class C stays float32 in memory
        "scipy": _version("scipy"),  # whose BLAS it is
        "numba": _version("numba"),
        "pillow": _version("pillow"),
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "command": command_line(sys.orig_argv),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


@functools.cache
def commit() -> str | None:
    """Return the commit of this checkout, with "-dirty" after changes."""
    here = Path(__file__).parent
    describe = ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        for command in (["ls-files", "--error-unmatch", __file__], describe):
            done = subprocess.run(
                ["git", *command], cwd=here, capture_output=True, text=True, timeout=10, check=True
            )
    except (OSError, subprocess.SubprocessError):  # no git, or not in its hands
        return None
    return done.stdout.strip()


def _threading(device: str) -> str:
    if device == "cpu":
        of(np.empty(0))  # loads the backend, which decides
    return description()


def _blas() -> str:
    from threadpoolctl import threadpool_info

    found = [library for library in threadpool_info() if library["user_api"] == "blas"]
    names = {f"{lib['internal_api']} {lib['version']} ({lib.get('architecture')})" for lib in found}
    return ", ".join(sorted(names)) or "unknown"


def _processor() -> str:
    """Return what the processor calls itself, "model name" where Linux is."""
    with suppress(OSError):
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
