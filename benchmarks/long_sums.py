"""Errors of long sums beside torch and NumPy, in last-place units.

    python benchmarks/long_sums.py

sums columns of float32 of up to 2^26 numbers, all 0.1 or random ones between 0.5 and 1.5, by every
op that sums, and compares with sums of the same numbers in float64. Inner products have ones as
their other factor. Takes half a minute and 2.2 GB. Writes benchmarks/results/long-sums.json, and
with --table the table in docs/cpu.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import tinyalex
import tinyalex.functional as F
from shared import report

Array = np.ndarray[Any, Any]
POWERS = (10, 18, 25, 26)


def _gradient(lib: Any, op: Callable[[Any], Any], column: Any, *shape: int) -> float:
    leaf = lib.ones(shape, requires_grad=True)
    y = op(leaf)
    y.backward(column.reshape(y.shape))
    return float(leaf.grad[(0,) * len(shape)])


# Each takes a library, its functions and a column as its tensor.
OPS: dict[str, Callable[[Any, Any, Any], float]] = {
    "`sum`": lambda lib, F, x: x.sum(0).item(),
    "`mean`, times the length": lambda lib, F, x: x.mean(0).item() * len(x),
    "gradient of a number added": lambda lib, F, x: _gradient(lib, lambda b: x + b, x, 1),
    "`linear`, gradient of the bias": lambda lib, F, x: _gradient(
        lib, lambda b: F.linear(x, lib.zeros(1, 1), b), x, 1
    ),
    "`linear`, gradient of the weight": lambda lib, F, x: _gradient(
        lib, lambda w: F.linear(lib.ones(len(x), 1), w), x, 1, 1
    ),
    "`linear`, output": lambda lib, F, x: F.linear(lib.ones(1, len(x)), x.reshape(1, -1)).item(),
    "`@` of two vectors": lambda lib, F, x: (lib.ones(len(x)) @ x.reshape(-1)).item(),
    "`@` of two matrices": lambda lib, F, x: (lib.ones(1, len(x)) @ x).item(),
    "`adaptive_avg_pool2d`, times the length": lambda lib, F, x: (
        F.adaptive_avg_pool2d(x.reshape(1, 1, 1 << len(x).bit_length() // 2, -1), 1).item() * len(x)
    ),
}
# Plain NumPy has four of them.
NUMPY: dict[str, Callable[[Array], float]] = {
    "`sum`": lambda x: float(x.sum(0)[0]),
    "`mean`, times the length": lambda x: float(x.mean(0)[0]) * len(x),
    "`@` of two vectors": lambda x: float(np.ones(len(x), x.dtype) @ x[:, 0]),
    "`@` of two matrices": lambda x: float((np.ones((1, len(x)), x.dtype) @ x)[0, 0]),
}


def columns(power: int) -> dict[str, tuple[Array, float]]:
    """Return columns of 2^``power`` numbers with their sums."""
    length = 1 << power
    rng = np.random.default_rng(power)
    random = rng.random((length, 1), np.float32) + np.float32(0.5)
    # float64 adds numbers of 24 bits without error, up to 2^28 of them.
    return {
        "equal": (np.full((length, 1), 0.1, np.float32), float(np.float32(0.1)) * length),
        "random": (random, float(random.sum(dtype=np.float64))),
    }


def errors(power: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return the error of each op, per kind of numbers and library."""
    torch = _torch()
    found: dict[str, dict[str, dict[str, float]]] = {}
    for kind, (x, exact) in columns(power).items():
        unit = math.ldexp(np.finfo(np.float32).eps, math.frexp(exact)[1] - 1)
        for name, op in OPS.items():
            sums = {"tinyalex": op(tinyalex, F, tinyalex.Tensor(x))}
            if torch:
                sums["torch"] = op(torch, torch.nn.functional, torch.from_numpy(x))
            if name in NUMPY:
                sums["NumPy"] = NUMPY[name](x)
            found.setdefault(name, {})[kind] = {
                library: abs(value - exact) / unit for library, value in sums.items()
            }
    return found


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        return None
    return torch


def table(result: dict[str, Any]) -> str:
    """Return the errors of each op, a column per length."""
    powers = list(result["errors"])
    rows = [
        f"| sum by | numbers | {' | '.join(f'2^{power}' for power in powers)} |",
        "|---|---|" + "---|" * len(powers),
    ]
    for name in OPS:
        for kind in ("equal", "random"):
            cells = (
                " / ".join(map(_text, result["errors"][power][name][kind].values()))
                for power in powers
            )
            rows.append(f"| {name} | {kind} | {' | '.join(cells)} |")
    caption = "Units in the last place: tinyalex / torch / NumPy, where it has the op. "
    return "\n".join([*rows, "", caption + report.one_line(result["machine"])])


def _text(error: float) -> str:
    return f"{error:.2g}" if error < 10 else f"{error:,.0f}"


def main() -> None:
    """Measure, print, save."""
    parser = report.parser(__doc__)
    parser.add_argument("--powers", type=int, nargs="+", default=POWERS, help="of 2: lengths")
    parser.add_argument("--table", action="store_true", help="update docs/cpu.md")
    args = parser.parse_args()
    found = {str(power): errors(power) for power in args.powers}
    result = {"machine": report.machine("torch"), "errors": found}
    report.publish("long-sums", result, table(result), args.table)


if __name__ == "__main__":
    main()
