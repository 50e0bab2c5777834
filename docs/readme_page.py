"""Code and counts of lines in README.md.

    python docs/readme_page.py

Each block stands between <!-- NAME --> and <!-- /NAME -->. `benchmarks/bench_cpu.py --table` fills
the table of speed, and `benchmarks/record_run.py` that of the first command.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from tinyalex.backends import reference

ROOT = Path(__file__).resolve().parents[1]
HEART = ("autograd.py", "tensor.py", "ops", "backends/reference.py")
WEEKEND = (*HEART, "functional.py", "nn", "models", "optim.py", "schedule.py")
CODE = (".py", ".cu", ".cuh")


def lines_of(*paths: Path) -> int:
    """Return the number of lines of code files, in folders too."""
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    texts = [file.read_text(encoding="utf-8") for file in files if file.suffix in CODE]
    return sum(len(text.splitlines()) for text in texts)


def size() -> str:
    """Return the sentence on the number of lines, in hundreds."""
    package = ROOT / "tinyalex"
    parts = (
        *([package / name for name in names] for names in (HEART, WEEKEND)),
        *([ROOT / name] for name in ("tinyalex", "kernels", "tests")),
    )
    heart, weekend, whole, kernels, tests = (f"{round(lines_of(*part), -2):,}" for part in parts)
    return (
        f"The heart (array, autograd, operations, NumPy kernels) is {heart} lines; with layers, "
        f"models and SGD it is {weekend}, a weekend; all of `tinyalex/` is {whole}, the CUDA "
        f"kernels are {kernels}, the tests {tests}."
    )


def blocks() -> dict[str, str]:
    """Return what stands between the markers, by name."""
    code = inspect.getsource(reference.conv2d_input_grad)
    return {"input-grad": f"```python\n{code}```", "size": size()}


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from shared import report

    for name, text in blocks().items():
        report.replace_table(ROOT / "README.md", name, text)
