"""Description of the GPU and its software, and its measured limits."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpu import loops
from gpu.floors import Ceilings
from shared import report
from tinyalex.backends.devices import DeviceError
from tinyalex.backends.gpu import count, cupy

LIBRARIES = ("tinyalex", "numpy", "ml_dtypes", "torch", "triton")
COPY_BYTES = 1 << 30  # of the large copy, read and written: past every cache
PRODUCT = 8192  # rows and columns of the large matrices
RUNS = 10
FAILED = "GPU_BENCHMARK_FAILED"  # in the environment: `failures`
OLDER_SWITCHES = "TINYALEX_ALLOW_TF32"  # in the environment: PyTorch is set by `allow_tf32`
ENVIRONMENT = ("CUPY_", "CUDA_", "CUBLAS_", "NVIDIA_TF32", "TORCH", "PYTORCH_", "TINYALEX_")


def facts() -> dict[str, Any]:
    """Return the facts needed to judge a time, None where unknown.

    Raises SystemExit, with what is missing, where there is no GPU.
    """
    try:
        count()
    except DeviceError as error:
        raise SystemExit(f"there is nothing to measure: {error}") from error
    xp = cupy()
    properties = xp.cuda.runtime.getDeviceProperties(xp.cuda.get_device_id())
    return {
        "date": datetime.date.today().isoformat(),
        # Where .git does not travel along, the environment has it.
        "commit": os.environ.get("TINYALEX_COMMIT")
        or _output("git", "-C", str(report.ROOT), "describe", "--always", "--dirty"),
        "gpu": properties["name"].decode(),
        "driver": query("driver_version"),
        "cuda driver": xp.cuda.runtime.driverGetVersion(),
        "cuda runtime": xp.cuda.runtime.runtimeGetVersion(),
        "versions": {
            **{name: report.version_of(name) for name in LIBRARIES},
            "cupy": xp.__version__,
        },
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(ENVIRONMENT)
        },
    }


def failures() -> dict[str, str]:
    """Return the reasons by name of what failed before `restart_if_dead` began anew."""
    return dict(json.loads(os.environ.get(FAILED, "{}")))


def last_failure() -> str:
    """Return the name of what `restart_if_dead` began anew behind, or nothing."""
    return next(reversed(failures()), "")


def restart_if_dead(failed: dict[str, str]) -> None:
    """Run this program anew if the GPU answers no longer.

    After a fault such as an illegal address every later call of the process fails, whatever it is.
    The new program finds ``failed`` in `failures`.
    """
    try:
        cupy().cuda.Device().synchronize()
    except Exception as error:
        print(f"the GPU answers no longer, so this program begins anew: {error}", flush=True)
        os.environ[FAILED] = json.dumps({**failures(), **failed})
        os.execv(sys.executable, sys.orig_argv)


def one_line(found: dict[str, Any]) -> str:
    """Return the facts as one line for the foot of a table."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items() if number)
    return (
        f"{found['date']}, {found['gpu']}, driver {found['driver']}, CUDA {found['cuda runtime']}; "
        f"{versions}; commit {found['commit']}"
    )


def rates(ceilings: dict[str, Any]) -> str:
    """Return what was measured in `ceilings` as words."""
    products, loops = (
        ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in ceilings[key].items())
        for key in ("operations", "loops")
    )
    copy = f"copy {ceilings['bandwidth'] / 1e12:.3g} TB/s"
    return f"{copy}; products in TFLOP/s: {products}; loops in TB/s and TFLOP/s: {loops}"


def query(field: str) -> str | None:
    """Return nvidia-smi's answers about the first GPU, whose settings stay."""
    text = _output("nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader", "--id=0")
    return text.splitlines()[0] if text else None


def clock() -> str | None:
    """Return the clock of the multiprocessors, such as "1980 MHz"."""
    return query("clocks.sm")


def ceilings(scale: int = 1) -> Ceilings:
    """Measure the speed of a large copy, and of large products.

    The products are PyTorch's, which are those of cuBLAS: CuPy has no switch to read back. Where
    PyTorch sees no GPU, there is CuPy's product in float32 only. ``scale`` divides the sizes.
    """
    xp = cupy()
    size = COPY_BYTES // 4 // scale**2
    some = np.random.default_rng(0).standard_normal(1 << 20, np.float32)
    source = xp.asarray(np.resize(some, size))
    target = xp.empty_like(source)

    def copy() -> None:
        target[...] = source

    bandwidth = 2 * source.nbytes / seconds(copy)
    operations = 2 * (PRODUCT // scale) ** 3
    return Ceilings(
        {name: operations / seconds(call) for name, call in _products(PRODUCT // scale)},
        bandwidth,
        _loops(scale),
    )


def _loops(scale: int) -> dict[str, float]:
    try:
        return loops.rates(scale, seconds)
    except Exception as error:  # nothing else depends on them
        print(f"no loops: {type(error).__name__}: {error}", flush=True)
        return {}


def _products(size: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield a product of each class, whose switches are set meanwhile."""
    torch = usable_torch()
    if torch is None:
        xp = cupy()
        rng = np.random.default_rng(0)
        a, b = (xp.asarray(rng.random((size, size), np.float32)) for _ in range(2))
        out = xp.empty_like(a)
        yield "A", lambda: xp.matmul(a, b, out=out)
        return
    from gpu import contestant_torch

    a, b = (torch.rand(size, size, device="cuda") for _ in range(2))
    for precision in "ABC":
        kind = torch.bfloat16 if precision == "C" else torch.float32
        operands = a.to(kind), b.to(kind)
        contestant_torch.set_flags(precision)
        yield precision, lambda operands=operands: torch.mm(*operands)


def seconds(call: Callable[[], Any], runs: int = RUNS) -> float:
    """Return the median time of a call, by CUDA's events."""
    xp = cupy()
    stream = xp.cuda.Stream.null
    times = []
    for _ in range(2):
        call()
    for _ in range(runs):
        start, end = xp.cuda.Event(), xp.cuda.Event()
        start.record(stream)
        call()
        end.record(stream)
        end.synchronize()
        times.append(xp.cuda.get_elapsed_time(start, end) / 1e3)
    return float(np.median(times))


def usable_torch() -> Any:
    """Return torch, None if it is not installed or sees no GPU."""
    return None if why_no_torch() else sys.modules["torch"]


def why_no_torch() -> str | None:
    """Return the reason why PyTorch cannot take part, None if it can."""
    if "stand-in" in cupy().__version__:
        return "there is no GPU: CuPy is played by the stand-in"
    try:
        import torch
    except ImportError as error:
        return f"PyTorch cannot be imported: {error}"
    return None if torch.cuda.is_available() else "PyTorch sees no GPU"


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
