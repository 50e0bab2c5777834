"""Where a run happens: versions, machine and threads, for its header and its run.json."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from threadpoolctl import threadpool_info

from tinyalex.backends import current_backend
from tinyalex.threads import get_num_threads
from tinyalex.version import __version__


def environment() -> dict[str, Any]:
    """Return what, besides the settings, the numbers of a run may depend on."""
    return {
        "tinyalex": __version__,
        "backend": current_backend(),
        "device": "cpu",
        "threads": get_num_threads(),
        "blas": _blas(),
        "python": platform.python_version(),
        "numpy": _version("numpy"),
        "numba": _version("numba"),
        "pillow": _version("pillow"),
        "machine": f"{platform.system()} {platform.machine()}",
        "command": sys.argv,
    }


def _blas() -> str:
    found = [library for library in threadpool_info() if library["user_api"] == "blas"]
    names = {f"{lib['internal_api']} {lib['version']} ({lib.get('architecture')})" for lib in found}
    return ", ".join(sorted(names)) or "unknown"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
